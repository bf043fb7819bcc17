"""Quantise the merged judge, and the student's bare base, with GPTQ.

in:  <results>/merged/, the student's base, <results>/folds/fold0.parquet
out: <results>/gptq/{bits}bit/, <results>/gptq_base/{bits}bit/
"""


rule quantise_model:
    """Quantise the merged judge, except its score head."""
    input:
        merged="<results>/merged/model.safetensors",
        config="<results>/merged/config.json",
        tokenizer="<results>/merged/tokenizer.json",
        tokenizer_config="<results>/merged/tokenizer_config.json",
        fold="<results>/folds/fold0.parquet",
    output:
        model="<results>/gptq/{bits}bit/model.safetensors",
        config="<results>/gptq/{bits}bit/config.json",
        quantize_config="<results>/gptq/{bits}bit/quantize_config.json",
        tokenizer="<results>/gptq/{bits}bit/tokenizer.json",
        tokenizer_config="<results>/gptq/{bits}bit/tokenizer_config.json",
        report="<results>/gptq/{bits}bit/quantisation.json",
    log:
        "<logs>/quantise_model/{bits}bit.log",
    benchmark:
        "<benchmarks>/quantise_model/{bits}bit.tsv"
    conda:
        "../../environment.yml"
    threads: STUDENT.threads
    resources:
        gpu=STUDENT.gpus,
        mem_mb=memory_of(quantising),
        runtime=minutes_of(quantising),
    params:
        settings=quantisation_settings,
        text=config["text"],
        code=code_digest("quantise_model.py"),
    script:
        "../scripts/quantise_model.py"


rule quantise_base:
    """Quantise the student's bare base, for fold adapters to run on."""
    input:
        base=base_manifest,
        fold="<results>/folds/fold0.parquet",
    output:
        model="<results>/gptq_base/{bits}bit/model.safetensors",
        config="<results>/gptq_base/{bits}bit/config.json",
        quantize_config="<results>/gptq_base/{bits}bit/quantize_config.json",
        tokenizer="<results>/gptq_base/{bits}bit/tokenizer.json",
        tokenizer_config="<results>/gptq_base/{bits}bit/tokenizer_config.json",
        report="<results>/gptq_base/{bits}bit/quantisation.json",
    log:
        "<logs>/quantise_base/{bits}bit.log",
    benchmark:
        "<benchmarks>/quantise_base/{bits}bit.tsv"
    wildcard_constraints:
        bits="4|8",
    conda:
        "../../environment.yml"
    threads: STUDENT.threads
    resources:
        gpu=STUDENT.gpus,
        mem_mb=memory_of(quantising),
        runtime=minutes_of(quantising),
    params:
        settings=quantisation_settings,
        text=config["text"],
        code=code_digest("quantise_base.py"),
    script:
        "../scripts/quantise_base.py"
