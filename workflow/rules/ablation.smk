"""The distillation ablation: students that differ in one thing, over folds and seeds.

in:  what distill_student reads
out: <results>/ablation/{arm}/seed{seed}/fold{fold}/, <results>/ablation/distillation.csv

`use rule` gives every arm the student's own script; only its settings differ. The arm
labels_only_few_long trains four times as many epochs, about as many steps as its
distilled counterpart, which sees every row.
"""


use rule distill_student as train_arm with:
    input:
        pairs="<results>/folds/fold{fold}.parquet",
        logits=arm_inputs(student_logits),
        gates=arm_inputs(student_gates),
        init="<results>/post_pretrain/student/adapter_model.safetensors",
        config="<results>/post_pretrain/student/adapter_config.json",
        base=base_manifest,
    output:
        adapter="<results>/ablation/{arm}/seed{seed}/fold{fold}/adapter_model.safetensors",
        config="<results>/ablation/{arm}/seed{seed}/fold{fold}/adapter_config.json",
        curve="<results>/ablation/{arm}/seed{seed}/fold{fold}/train.jsonl",
    log:
        "<logs>/train_arm/{arm}.seed{seed}.fold{fold}.log",
    benchmark:
        "<benchmarks>/train_arm/{arm}.seed{seed}.fold{fold}.tsv"
    wildcard_constraints:
        arm="|".join(ARMS),
    params:
        teachers=arm_teachers,
        precision=model_precision,
        training=arm_training,
        distillation=arm_distillation,
        text=config["text"],
        code=code_digest("distill_student.py"),


use rule predict_view as predict_arm with:
    input:
        tables=["<results>/folds/fold{fold}.parquet"],
        weights="<results>/ablation/{arm}/seed{seed}/fold{fold}/adapter_model.safetensors",
        base=base_manifest,
    output:
        expand(
            "<results>/ablation/{{arm}}/seed{{seed}}/fold{{fold}}/{view}.parquet",
            view=VIEWS,
        ),
    log:
        "<logs>/predict_arm/{arm}.seed{seed}.fold{fold}.log",
    benchmark:
        "<benchmarks>/predict_arm/{arm}.seed{seed}.fold{fold}.tsv"
    wildcard_constraints:
        arm="|".join(ARMS),
    params:
        views=VIEWS,
        splits=["dev", "select", "test"],
        precision="auto",
        text=config["text"],
        code=code_digest("predict_view.py"),


rule compare_arms:
    """Compare the arms pair by pair, with intervals over prompts."""
    input:
        folds=expand("<results>/folds/fold{fold}.parquet", fold=FOLDS),
        predictions=expand(
            "<results>/ablation/{arm}/seed{seed}/fold{fold}/{view}.parquet",
            arm=ARMS,
            seed=config["ablation"]["seeds"],
            fold=FOLDS,
            view=VIEWS,
        ),
    output:
        table="<results>/ablation/distillation.csv",
    log:
        "<logs>/compare_arms/all.log",
    benchmark:
        "<benchmarks>/compare_arms/all.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        arms=list(ARMS),
        n_seeds=len(config["ablation"]["seeds"]),
        views=VIEWS,
        evaluation=config["evaluation"],
        code=code_digest("compare_arms.py"),
    script:
        "../scripts/compare_arms.py"


rule ablation_distillation:
    """Does distillation help, where labels are many and where they are few?"""
    input:
        "<results>/ablation/distillation.csv",
