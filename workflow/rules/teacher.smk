"""Fine-tune each teacher's shared adapter on each fold, and score all rows with it.

in:  <results>/folds/*.parquet, <results>/base/{base}/manifest.json
out: <results>/post_pretrain/{model}/, <results>/teacher/{teacher}/fold{fold}/

The scripts read settings of how a job runs (token budget, recomputation, intervals of
checkpoints and progress lines) from the configuration. These are no params, so a change
of them reruns nothing. Checkpoints lie in the scratch folder.
"""


rule post_pretrain:
    """Train the adapter that all folds of a model start from."""
    input:
        pairs="<results>/folds/post_pretrain.parquet",
        base=base_manifest,
    output:
        adapter="<results>/post_pretrain/{model}/adapter_model.safetensors",
        config="<results>/post_pretrain/{model}/adapter_config.json",
        curve="<results>/post_pretrain/{model}/train.jsonl",
    log:
        "<logs>/post_pretrain/{model}.log",
    benchmark:
        "<benchmarks>/post_pretrain/{model}.tsv"
    conda:
        "../../environment.yml"
    threads: model_threads
    resources:
        gpu=model_gpus,
        mem_mb=memory_of(training("post_pretrain", PAIRS.post_pretrain)),
        runtime=minutes_of(training("post_pretrain", PAIRS.post_pretrain)),
    params:
        precision=model_precision,
        lora=model_lora,
        post_pretrain=settings_of("post_pretrain"),
        section=section_of("post_pretrain"),
        text=config["text"],
        code=code_digest("post_pretrain.py"),
    script:
        "../scripts/post_pretrain.py"


rule train_teacher:
    """Fine-tune one adapter on a fold's train side; resumes from its scratch folder."""
    input:
        pairs="<results>/folds/fold{fold}.parquet",
        init="<results>/post_pretrain/{teacher}/adapter_model.safetensors",
        config="<results>/post_pretrain/{teacher}/adapter_config.json",
        base=base_manifest,
    output:
        adapter="<results>/teacher/{teacher}/fold{fold}/adapter_model.safetensors",
        config="<results>/teacher/{teacher}/fold{fold}/adapter_config.json",
        curve="<results>/teacher/{teacher}/fold{fold}/train.jsonl",
    log:
        "<logs>/train_teacher/{teacher}.fold{fold}.log",
    benchmark:
        "<benchmarks>/train_teacher/{teacher}.fold{fold}.tsv"
    conda:
        "../../environment.yml"
    threads: model_threads
    resources:
        gpu=model_gpus,
        mem_mb=memory_of(training("training", PAIRS.train)),
        runtime=minutes_of(training("training", PAIRS.train)),
    params:
        precision=model_precision,
        training=settings_of("training"),
        section=section_of("training"),
        text=config["text"],
        code=code_digest("train_teacher.py"),
    script:
        "../scripts/train_teacher.py"


rule infer_logits:
    """Score the rows of a fold, seen and unseen, in both orders."""
    input:
        pairs=["<results>/folds/fold{fold}.parquet"],
        weights="<results>/teacher/{teacher}/fold{fold}/adapter_model.safetensors",
        config="<results>/teacher/{teacher}/fold{fold}/adapter_config.json",
        base=base_manifest,
    output:
        logits="<results>/teacher/{teacher}/fold{fold}/logits.npz",
    log:
        "<logs>/infer_logits/{teacher}.fold{fold}.log",
    benchmark:
        "<benchmarks>/infer_logits/{teacher}.fold{fold}.tsv"
    conda:
        "../../environment.yml"
    threads: model_threads
    resources:
        gpu=model_gpus,
        mem_mb=memory_of(scoring),
        runtime=minutes_of(scoring),
    params:
        scoring=teacher_scoring,
        section=section_of("inference"),
        text=config["text"],
        code=code_digest("infer_logits.py"),
    script:
        "../scripts/infer_logits.py"


use rule infer_logits as infer_unlabelled with:
    input:
        pairs=[STUDENTS.pseudo_pairs],
        weights="<results>/teacher/{teacher}/fold{fold}/adapter_model.safetensors",
        config="<results>/teacher/{teacher}/fold{fold}/adapter_config.json",
        base=base_manifest,
    output:
        logits="<results>/teacher/{teacher}/fold{fold}/unlabelled.npz",
    log:
        "<logs>/infer_unlabelled/{teacher}.fold{fold}.log",
    benchmark:
        "<benchmarks>/infer_unlabelled/{teacher}.fold{fold}.tsv"
