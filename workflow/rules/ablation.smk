"""Train and compare students that differ in one setting, over folds and seeds.

in:  what distill_student reads, or variants of it
out: <results>/ablation/{arm}/seed{seed}/fold{fold}/, <results>/ablation/{ablation}.csv

`use rule` gives every arm the scripts of the pipeline's own student; only its settings
differ. prefdistill/pipeline/ablations.py lists the arms and what is compared.
"""


use rule calibrate_logits as calibrate_for_arms with:
    output:
        calibrated="<results>/ablation/{scaling}/{teacher}/fold{fold}/calibrated.npz",
        record="<results>/ablation/{scaling}/{teacher}/fold{fold}/calibration.json",
    log:
        "<logs>/calibrate_for_arms/{scaling}.{teacher}.fold{fold}.log",
    benchmark:
        "<benchmarks>/calibrate_for_arms/{scaling}.{teacher}.fold{fold}.tsv"
    wildcard_constraints:
        scaling="|".join(STUDENTS.scalings),
    params:
        scaling=STUDENTS.calibration,
        code=code_digest("calibrate_logits.py"),


use rule post_pretrain as post_pretrain_arm with:
    output:
        adapter="<results>/ablation/{arm}/init/adapter_model.safetensors",
        config="<results>/ablation/{arm}/init/adapter_config.json",
        curve="<results>/ablation/{arm}/init/train.jsonl",
    log:
        "<logs>/post_pretrain_arm/{arm}.log",
    benchmark:
        "<benchmarks>/post_pretrain_arm/{arm}.tsv"
    wildcard_constraints:
        arm="|".join(STUDENTS.arms),
    params:
        precision=model_precision,
        lora=model_lora,
        post_pretrain=STUDENTS.post_pretrain,
        section=["student", "post_pretrain"],
        text=config["text"],
        code=code_digest("post_pretrain.py"),


use rule distill_student as train_arm with:
    output:
        adapter="<results>/ablation/{arm}/seed{seed}/fold{fold}/adapter_model.safetensors",
        config="<results>/ablation/{arm}/seed{seed}/fold{fold}/adapter_config.json",
        average=[],
        curve="<results>/ablation/{arm}/seed{seed}/fold{fold}/train.jsonl",
        rows="<results>/ablation/{arm}/seed{seed}/fold{fold}/rows.json",
    log:
        "<logs>/train_arm/{arm}.seed{seed}.fold{fold}.log",
    benchmark:
        "<benchmarks>/train_arm/{arm}.seed{seed}.fold{fold}.tsv"
    wildcard_constraints:
        arm="|".join(STUDENTS.arms),


use rule infer_logits as infer_arm with:
    input:
        pairs=["<results>/folds/fold{fold}.parquet"],
        weights="<results>/ablation/{arm}/seed{seed}/fold{fold}/adapter_model.safetensors",
        config="<results>/ablation/{arm}/seed{seed}/fold{fold}/adapter_config.json",
        base=base_manifest,
    output:
        logits="<results>/ablation/{arm}/seed{seed}/fold{fold}/logits.npz",
    log:
        "<logs>/infer_arm/{arm}.seed{seed}.fold{fold}.log",
    benchmark:
        "<benchmarks>/infer_arm/{arm}.seed{seed}.fold{fold}.tsv"
    wildcard_constraints:
        arm="|".join(STUDENTS.arms),


use rule calibrate_logits as calibrate_arm with:
    input:
        logits="<results>/ablation/{arm}/seed{seed}/fold{fold}/logits.npz",
        adapter="<results>/ablation/{arm}/seed{seed}/fold{fold}/adapter_model.safetensors",
        fold="<results>/folds/fold{fold}.parquet",
    output:
        calibrated="<results>/ablation/{arm}/seed{seed}/fold{fold}/calibrated.npz",
        record="<results>/ablation/{arm}/seed{seed}/fold{fold}/calibration.json",
    log:
        "<logs>/calibrate_arm/{arm}.seed{seed}.fold{fold}.log",
    benchmark:
        "<benchmarks>/calibrate_arm/{arm}.seed{seed}.fold{fold}.tsv"
    wildcard_constraints:
        arm="|".join(STUDENTS.arms),


use rule predict_logits as predict_arm with:
    input:
        pairs=["<results>/folds/fold{fold}.parquet"],
        weights="<results>/ablation/{arm}/seed{seed}/fold{fold}/adapter_model.safetensors",
        base=base_manifest,
    output:
        logits="<results>/ablation/{arm}/seed{seed}/fold{fold}/predictions.npz",
    log:
        "<logs>/predict_arm/{arm}.seed{seed}.fold{fold}.log",
    benchmark:
        "<benchmarks>/predict_arm/{arm}.seed{seed}.fold{fold}.tsv"
    wildcard_constraints:
        arm="|".join(STUDENTS.arms),
    params:
        scoring=judge_scoring("auto", ["dev", "select", "test"]),
        section=["predict"],
        text=config["text"],
        code=code_digest("infer_logits.py"),


rule compare_arms:
    """Compare the arms of an ablation pair by pair, with intervals over prompts."""
    input:
        folds=expand("<results>/folds/fold{fold}.parquet", fold=FOLDS),
        predictions=STUDENTS.compared_predictions,
    output:
        table="<results>/ablation/{ablation}.csv",
        page="<results>/ablation/{ablation}.md",
    log:
        "<logs>/compare_arms/{ablation}.log",
    benchmark:
        "<benchmarks>/compare_arms/{ablation}.tsv"
    wildcard_constraints:
        ablation="|".join(STUDENTS.ablations),
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        comparisons=STUDENTS.comparisons,
        changes=STUDENTS.compared_changes,
        unclean=STUDENTS.unclean_arms,
        evaluation=config["evaluation"],
        code=code_digest("compare_arms.py"),
    script:
        "../scripts/compare_arms.py"


for ablation in STUDENTS.ablations:

    rule:
        name:
            f"ablation_{ablation}"
        input:
            f"<results>/ablation/{ablation}.md",


rule ablations:
    """Make every ablation's table."""
    input:
        expand("<results>/ablation/{ablation}.md", ablation=STUDENTS.ablations),
