"""The report: baselines, scores of every stage, steps between them, figures."""


rule fit_baselines:
    """Fit the class prior, a length model and surface-feature trees."""
    input:
        folds=expand("<results>/folds/fold{fold}.parquet", fold=FOLDS),
    output:
        "<results>/predictions/baselines.parquet",
    log:
        "<logs>/fit_baselines/all.log",
    benchmark:
        "<benchmarks>/fit_baselines/all.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        seed=config["evaluation"]["seed"],
        code=code_digest("fit_baselines.py"),
    script:
        "../scripts/fit_baselines.py"


rule evaluate:
    """Score every stage with intervals, and the paired differences between stages."""
    input:
        folds=expand("<results>/folds/fold{fold}.parquet", fold=FOLDS),
        baselines="<results>/predictions/baselines.parquet",
        logits=expand(
            "<results>/teacher/{teacher}/fold{fold}/logits.npz",
            teacher=TEACHERS,
            fold=FOLDS,
        ),
        calibrated=expand(
            "<results>/teacher/{teacher}/fold{fold}/calibrated.npz",
            teacher=TEACHERS,
            fold=FOLDS,
        ),
        students=expand(
            "<results>/predictions/fold{fold}_bf16/{view}.parquet",
            fold=FOLDS,
            view=VIEWS,
        ),
        labels_only=labels_only_predictions,
        weights="<results>/ensemble/weights.json",
        judges=expand(
            "<results>/predictions/{model}/{view}.parquet", model=JUDGES, view=VIEWS
        ),
        judge_calibrations=map(calibration_of, JUDGES),
        final=f"<results>/predictions/{FINAL}/symmetrised.parquet",
        final_views=expand(
            "<results>/predictions/{model}/{view}.parquet", model=FINAL, view=VIEWS
        ),
        final_calibration=calibration_of(FINAL),
        truth=simulator_truth,
    output:
        scores=report(
            "<results>/report/scores.csv",
            caption="../report/scores.rst",
            category="Scores",
        ),
        steps=report(
            "<results>/report/steps.csv",
            caption="../report/steps.rst",
            category="Scores",
        ),
        predictions="<results>/report/predictions.parquet",
    log:
        "<logs>/evaluate/all.log",
    benchmark:
        "<benchmarks>/evaluate/all.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        teachers=TEACHERS,
        judges=JUDGES,
        final=FINAL,
        views=VIEWS,
        calibration=TEACHER_SCALING,
        evaluation=config["evaluation"],
        code=code_digest("evaluate.py"),
    script:
        "../scripts/evaluate.py"


rule plot_report:
    """Draw the log loss of every stage, reliability diagrams and training curves."""
    input:
        scores="<results>/report/scores.csv",
        folds=expand("<results>/folds/fold{fold}.parquet", fold=FOLDS),
        logits=expand(
            "<results>/teacher/{teacher}/fold{fold}/logits.npz",
            teacher=TEACHERS,
            fold=FOLDS,
        ),
        calibrated=expand(
            "<results>/teacher/{teacher}/fold{fold}/calibrated.npz",
            teacher=TEACHERS,
            fold=FOLDS,
        ),
        final=f"<results>/predictions/{FINAL}/symmetrised.parquet",
        curves=[
            *expand(
                "<results>/teacher/{teacher}/fold{fold}/train.jsonl",
                teacher=TEACHERS,
                fold=FOLDS,
            ),
            *expand("<results>/student/fold{fold}/train.jsonl", fold=FOLDS),
        ],
    output:
        stages=report(
            "<results>/report/stages.svg",
            caption="../report/stages.rst",
            category="Figures",
        ),
        reliability=report(
            "<results>/report/reliability.svg",
            caption="../report/reliability.rst",
            category="Figures",
        ),
        curves=report(
            "<results>/report/curves.svg",
            caption="../report/curves.rst",
            category="Figures",
        ),
    log:
        "<logs>/plot_report/all.log",
    benchmark:
        "<benchmarks>/plot_report/all.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        teachers=TEACHERS,
        judges=JUDGES,
        runs=expand("{model}/fold {fold}", model=MODELS, fold=FOLDS),
        n_bins=config["evaluation"]["n_bins"],
        code=code_digest("plot_report.py"),
    script:
        "../scripts/plot_report.py"


rule summarise_report:
    """Write the summary that a run ends by printing."""
    input:
        scores="<results>/report/scores.csv",
        steps="<results>/report/steps.csv",
        cleaning="<results>/data/cleaning.json",
        teachers=expand(
            "<results>/teacher/{teacher}/fold{fold}/calibration.json",
            teacher=TEACHERS,
            fold=FOLDS,
        ),
        judges=map(calibration_of, JUDGES),
        figures=rules.plot_report.output,
        submission=SUBMISSION,
    output:
        summary=report(
            "<results>/report/summary.md",
            caption="../report/summary.rst",
            category="Scores",
        ),
    log:
        "<logs>/summarise_report/all.log",
    benchmark:
        "<benchmarks>/summarise_report/all.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        judges=JUDGES,
        teachers=expand("{teacher} fold {fold}", teacher=TEACHERS, fold=FOLDS),
        teacher_gate=config["distillation"]["teacher_gate"],
        code=code_digest("summarise_report.py"),
    script:
        "../scripts/summarise_report.py"
