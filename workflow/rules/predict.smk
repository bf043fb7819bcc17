"""Predictions of every model in every view, their symmetrised form, the submission."""


rule predict_view:
    """Score select, test and unlabelled pairs (fold models: dev too) in all views."""
    input:
        tables=prediction_tables,
        weights=prediction_weights,
        base=prediction_base,
    output:
        expand("<results>/predictions/{{model}}/{view}.parquet", view=VIEWS),
    log:
        "<logs>/predict_view/{model}.log",
    benchmark:
        "<benchmarks>/predict_view/{model}.tsv"
    wildcard_constraints:
        model=FOLD_MODELS if BUDGETED else SCORED_MODELS,
    conda:
        "../../environment.yml"
    threads: STUDENT.threads
    resources:
        gpu=STUDENT.gpus,
        mem_mb=memory_of(predicting),
        runtime=minutes_of(predicting),
    params:
        views=VIEWS,
        splits=prediction_splits,
        precision=prediction_precision,
        text=config["text"],
        code=code_digest("predict_view.py"),
    script:
        "../scripts/predict_view.py"


use rule predict_view as predict_average with:
    input:
        tables=["<results>/folds/fold{fold}.parquet"],
        weights="<results>/student/fold{fold}/ema/adapter_model.safetensors",
        base=base_manifest,
    output:
        expand("<results>/predictions/fold{{fold}}_ema/{view}.parquet", view=VIEWS),
    log:
        "<logs>/predict_average/fold{fold}.log",
    benchmark:
        "<benchmarks>/predict_average/fold{fold}.tsv"
    params:
        views=VIEWS,
        splits=["dev", "select", "test"],
        precision="auto",
        text=config["text"],
        code=code_digest("predict_view.py"),


rule average_predictions:
    """Average the logits of the chosen folds' adapters, joined by id."""
    input:
        predictions=expand(
            "<results>/predictions/fold{fold}_{{base}}/{view}.parquet",
            fold=CHOSEN_FOLDS,
            view=VIEWS,
        ),
        weights="<results>/ensemble/weights.json",
        select=best_fold_table,
    output:
        expand("<results>/predictions/adapters_{{base}}/{view}.parquet", view=VIEWS),
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
        views=VIEWS,
        code=code_digest("average_predictions.py"),
    script:
        "../scripts/average_predictions.py"


rule symmetrise:
    """Join a judge's views by id and average their probabilities."""
    input:
        predictions=expand("<results>/predictions/{{model}}/{view}.parquet", view=VIEWS),
        calibration=judge_calibration,
        budget=second_view_choice,
        tables=prediction_tables if KNOWN_PRIORS else [],
        trees=["<results>/predictions/baselines.parquet"] if TREES_WEIGHT else [],
    output:
        "<results>/predictions/{model}/symmetrised.parquet",
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
        views=VIEWS,
        known_priors=KNOWN_PRIORS,
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
