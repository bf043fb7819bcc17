"""Predict with every model in every view, average the views, write the submission."""


use rule infer_logits as predict_logits with:
    input:
        pairs=prediction_tables,
        weights=prediction_weights,
        base=prediction_base,
    output:
        logits="<results>/predictions/{model}/logits.npz",
    log:
        "<logs>/predict_logits/{model}.log",
    benchmark:
        "<benchmarks>/predict_logits/{model}.tsv"
    wildcard_constraints:
        model=SCORED_MODELS,
    threads: STUDENT.threads
    resources:
        gpu=STUDENT.gpus,
        mem_mb=memory_of(predicting),
        runtime=minutes_of(predicting),
    params:
        scoring=judge_scoring(prediction_precision, prediction_splits),
        section=["predict"],
        text=config["text"],
        code=code_digest("infer_logits.py"),


use rule predict_logits as predict_average with:
    input:
        pairs=["<results>/folds/fold{fold}.parquet"],
        weights="<results>/student/fold{fold}/ema/adapter_model.safetensors",
        base=base_manifest,
    output:
        logits="<results>/predictions/fold{fold}_ema/logits.npz",
    log:
        "<logs>/predict_average/fold{fold}.log",
    benchmark:
        "<benchmarks>/predict_average/fold{fold}.tsv"
    params:
        scoring=judge_scoring("auto", ["dev", "select", "test"]),
        section=["predict"],
        text=config["text"],
        code=code_digest("infer_logits.py"),


rule average_predictions:
    """Average the logits of the chosen folds' adapters, joined by id."""
    input:
        students=expand(
            "<results>/predictions/fold{fold}_{{base}}/logits.npz", fold=CHOSEN_FOLDS
        ),
        weights="<results>/ensemble/weights.json",
        select=best_fold_table,
    output:
        logits="<results>/predictions/adapters_{base}/logits.npz",
    log:
        "<logs>/average_predictions/{base}.log",
    benchmark:
        "<benchmarks>/average_predictions/{base}.tsv"
    wildcard_constraints:
        base=ADAPTER_BASES,
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        folds=CHOSEN_FOLDS,
        code=code_digest("average_predictions.py"),
    script:
        "../scripts/average_predictions.py"


rule symmetrise:
    """Average a judge's probabilities over its views."""
    input:
        logits="<results>/predictions/{model}/logits.npz",
        calibration=judge_calibration,
        trees=["<results>/predictions/baselines.parquet"] if TREES_WEIGHT else [],
    output:
        symmetrised="<results>/predictions/{model}/symmetrised.parquet",
    log:
        "<logs>/symmetrise/{model}.log",
    benchmark:
        "<benchmarks>/symmetrise/{model}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        trees_weight=TREES_WEIGHT,
        code=code_digest("symmetrise.py"),
    script:
        "../scripts/symmetrise.py"


rule write_submission:
    """Write the final model's probabilities of the unlabelled pairs in Kaggle form."""
    input:
        symmetrised=f"<results>/predictions/{FINAL}/symmetrised.parquet",
        unlabelled="<results>/folds/unlabelled.parquet",
    output:
        submission="<results>/submission.csv",
    log:
        "<logs>/write_submission/all.log",
    benchmark:
        "<benchmarks>/write_submission/all.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        code=code_digest("write_submission.py"),
    script:
        "../scripts/write_submission.py"
