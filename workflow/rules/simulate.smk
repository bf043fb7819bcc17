"""Simulate the demo's pairs with a judge whose probabilities are known."""


rule simulate_pairs:
    """Simulate answer pairs, dirty rows included, and the judge's probabilities."""
    output:
        train="<results>/simulated/train.csv",
        extra="<results>/simulated/extra.csv",
        ultra="<results>/simulated/ultra.csv",
        test="<results>/simulated/test.csv",
        truth="<results>/simulated/truth.parquet",
    log:
        "<logs>/simulate_pairs/simulate_pairs.log",
    benchmark:
        "<benchmarks>/simulate_pairs/simulate_pairs.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        settings=config["simulation"],
        code=code_digest("simulate_pairs.py"),
    script:
        "../scripts/simulate_pairs.py"
