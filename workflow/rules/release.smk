"""Release each judge as a folder that transformers loads, with card and example.

in:  <results>/merged/ or <results>/gptq/{bits}bit/, calibrated; the run's reports
out: <results>/release/merged/, <results>/release/gptq{bits}bit/

The weights in a release are a hard link, and no declared output. Snakemake sets the times
of declared outputs; that would make the linked model newer than what was made from it.
"""


rule write_release:
    """Write the merged judge's release: its files, a card and an example."""
    input:
        model="<results>/merged/model.safetensors",
        config="<results>/merged/config.json",
        tokenizer="<results>/merged/tokenizer.json",
        tokenizer_config="<results>/merged/tokenizer_config.json",
        calibration="<results>/merged/calibration.json",
        settings="<results>/merged/judge.json",
        scores="<results>/report/scores.csv",
        imported="<results>/data/import.json",
        folds="<results>/folds/folds.json",
    output:
        config="<results>/release/merged/config.json",
        tokenizer="<results>/release/merged/tokenizer.json",
        tokenizer_config="<results>/release/merged/tokenizer_config.json",
        calibration="<results>/release/merged/calibration.json",
        example="<results>/release/merged/example.py",
        card="<results>/release/merged/README.md",
        settings="<results>/release/merged/judge.json",
    log:
        "<logs>/write_release/merged.log",
    benchmark:
        "<benchmarks>/write_release/merged.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        bases=BASES,
        simulated=SETTINGS.data.is_simulated,
        code=code_digest("write_release.py"),
    script:
        "../scripts/write_release.py"


use rule write_release as write_quantised_release with:
    input:
        model="<results>/gptq/{bits}bit/model.safetensors",
        config="<results>/gptq/{bits}bit/config.json",
        quantize_config="<results>/gptq/{bits}bit/quantize_config.json",
        tokenizer="<results>/gptq/{bits}bit/tokenizer.json",
        tokenizer_config="<results>/gptq/{bits}bit/tokenizer_config.json",
        calibration="<results>/gptq/{bits}bit/calibration.json",
        settings="<results>/gptq/{bits}bit/judge.json",
        scores="<results>/report/scores.csv",
        imported="<results>/data/import.json",
        folds="<results>/folds/folds.json",
    output:
        config="<results>/release/gptq{bits}bit/config.json",
        quantize_config="<results>/release/gptq{bits}bit/quantize_config.json",
        tokenizer="<results>/release/gptq{bits}bit/tokenizer.json",
        tokenizer_config="<results>/release/gptq{bits}bit/tokenizer_config.json",
        calibration="<results>/release/gptq{bits}bit/calibration.json",
        example="<results>/release/gptq{bits}bit/example.py",
        card="<results>/release/gptq{bits}bit/README.md",
        settings="<results>/release/gptq{bits}bit/judge.json",
    log:
        "<logs>/write_release/gptq{bits}bit.log",
    benchmark:
        "<benchmarks>/write_release/gptq{bits}bit.tsv"
