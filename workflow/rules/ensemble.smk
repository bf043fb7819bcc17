"""Average the student's fold adapters and merge them into one 16-bit model.

in:  <results>/student/fold{fold}/, the student's base; for weights by advantage also
     the folds, <results>/predictions/fold{fold}_bf16/, <results>/predictions/baselines.parquet
out: <results>/ensemble/weights.json, <results>/ensemble/adapter_model.safetensors,
     <results>/merged/
"""


rule weigh_folds:
    """Write the weight of each fold in the ensemble."""
    input:
        fold_files=expand("<results>/folds/fold{fold}.parquet", fold=WEIGHED_FOLDS),
        students=expand(
            "<results>/predictions/fold{fold}_bf16/logits.npz", fold=WEIGHED_FOLDS
        ),
        baselines=reward_baselines,
    output:
        weights="<results>/ensemble/weights.json",
    log:
        "<logs>/weigh_folds/all.log",
    benchmark:
        "<benchmarks>/weigh_folds/all.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        folds=FOLDS,
        fold_weights=config["ensemble"]["fold_weights"],
        advantage=config["ensemble"]["advantage"] if WEIGHED_FOLDS else None,
        code=code_digest("weigh_folds.py"),
    script:
        "../scripts/weigh_folds.py"


rule average_adapters:
    """Average the fold adapters' weight changes into one adapter."""
    input:
        adapters=expand(
            "<results>/student/fold{fold}/adapter_model.safetensors", fold=FOLDS
        ),
        configs=expand("<results>/student/fold{fold}/adapter_config.json", fold=FOLDS),
        weights="<results>/ensemble/weights.json",
    output:
        adapter="<results>/ensemble/adapter_model.safetensors",
        config="<results>/ensemble/adapter_config.json",
        report="<results>/ensemble/average.json",
    log:
        "<logs>/average_adapters/all.log",
    benchmark:
        "<benchmarks>/average_adapters/all.tsv"
    conda:
        "../../environment.yml"
    threads: STUDENT.threads
    resources:
        mem_mb=memory_of(averaging),
        runtime=minutes_of(averaging),
    params:
        folds=FOLDS,
        method=config["ensemble"]["method"],
        code=code_digest("average_adapters.py"),
    script:
        "../scripts/average_adapters.py"


rule merge_adapter:
    """Add the averaged adapter to the student's base, in float32, rounded once."""
    input:
        base=base_manifest,
        adapter="<results>/ensemble/adapter_model.safetensors",
        config="<results>/ensemble/adapter_config.json",
    output:
        model="<results>/merged/model.safetensors",
        config="<results>/merged/config.json",
        tokenizer="<results>/merged/tokenizer.json",
        tokenizer_config="<results>/merged/tokenizer_config.json",
        report="<results>/merged/merge.json",
    log:
        "<logs>/merge_adapter/all.log",
    benchmark:
        "<benchmarks>/merge_adapter/all.tsv"
    conda:
        "../../environment.yml"
    threads: STUDENT.threads
    resources:
        mem_mb=memory_of(merging),
        runtime=minutes_of(merging),
    params:
        dtype="bfloat16",
        code=code_digest("merge_adapter.py"),
    script:
        "../scripts/merge_adapter.py"
