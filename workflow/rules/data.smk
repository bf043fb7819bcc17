"""Import pairs of all sources, clean them and split them into folds."""


rule import_pairs:
    """Read CSV, parquet and Hub data sets into one typed table."""
    input:
        files=SETTINGS.data.files,
    output:
        pairs="<results>/data/pairs.parquet",
        report="<results>/data/import.json",
    log:
        "<logs>/import_pairs/import_pairs.log",
    benchmark:
        "<benchmarks>/import_pairs/import_pairs.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        data=config["data"],
        code=code_digest("import_pairs.py"),
    script:
        "../scripts/import_pairs.py"


rule clean_pairs:
    """Drop rows that cannot train or score a judge, with counts by reason."""
    input:
        pairs="<results>/data/pairs.parquet",
        imported="<results>/data/import.json",
    output:
        clean="<results>/data/clean.parquet",
        report="<results>/data/cleaning.json",
    log:
        "<logs>/clean_pairs/clean_pairs.log",
    benchmark:
        "<benchmarks>/clean_pairs/clean_pairs.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        cleaning=config["cleaning"],
        code=code_digest("clean_pairs.py"),
    script:
        "../scripts/clean_pairs.py"


rule make_folds:
    """Split rows into folds and held-out splits, grouped by prompt."""
    input:
        pairs="<results>/data/clean.parquet",
    output:
        folds=expand("<results>/folds/fold{fold}.parquet", fold=FOLDS),
        post_pretrain="<results>/folds/post_pretrain.parquet",
        unlabelled="<results>/folds/unlabelled.parquet",
        pseudo="<results>/folds/pseudo.parquet",
        report="<results>/folds/folds.json",
    log:
        "<logs>/make_folds/make_folds.log",
    benchmark:
        "<benchmarks>/make_folds/make_folds.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        settings=config["folds"],
        code=code_digest("make_folds.py"),
    script:
        "../scripts/make_folds.py"
