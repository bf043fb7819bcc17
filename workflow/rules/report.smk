"""Report baselines, scores of every stage, steps between them, figures and pages.

`make report` collects every output marked with report() in results/report.html.
"""


report: "../report/workflow.rst"


rule fit_baselines:
    """Fit the baselines: class prior, a length model and surface-feature trees."""
    input:
        folds=expand("<results>/folds/fold{fold}.parquet", fold=FOLDS),
        unlabelled=["<results>/folds/unlabelled.parquet"] if TREES_WEIGHT else [],
    output:
        baselines="<results>/predictions/baselines.parquet",
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
    """Score every stage, and compare stages pair by pair, with intervals."""
    input:
        folds=expand("<results>/folds/fold{fold}.parquet", fold=FOLDS),
        baselines="<results>/predictions/baselines.parquet",
        teacher_logits=expand(
            "<results>/teacher/{teacher}/fold{fold}/logits.npz",
            teacher=TEACHERS,
            fold=FOLDS,
        ),
        teacher_calibrated=expand(
            "<results>/teacher/{teacher}/fold{fold}/calibrated.npz",
            teacher=TEACHERS,
            fold=FOLDS,
        ),
        student_logits=expand(
            "<results>/predictions/fold{fold}_bf16/logits.npz", fold=FOLDS
        ),
        labels_only=labels_only_predictions,
        weights="<results>/ensemble/weights.json",
        judge_logits=expand("<results>/predictions/{model}/logits.npz", model=JUDGES),
        judge_calibrations=map(calibration_of, JUDGES),
        final=f"<results>/predictions/{FINAL}/symmetrised.parquet",
        final_logits=f"<results>/predictions/{FINAL}/logits.npz",
        final_calibration=calibration_of(FINAL),
        truth=simulator_truth,
    output:
        scores=report(
            "<results>/report/scores.csv",
            caption="../report/scores.rst",
            category="Files",
            labels={"file": "scores.csv"},
        ),
        steps=report(
            "<results>/report/steps.csv",
            caption="../report/steps.rst",
            category="Files",
            labels={"file": "steps.csv"},
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
        final_model=FINAL,
        trees_weight=TREES_WEIGHT,
        scaling=TEACHER_SCALING,
        evaluation=config["evaluation"],
        code=code_digest("evaluate.py"),
    script:
        "../scripts/evaluate.py"


rule plot_report:
    """Draw figures of predictions, training curves and fold weights."""
    input:
        scores="<results>/report/scores.csv",
        folds=expand("<results>/folds/fold{fold}.parquet", fold=FOLDS),
        teacher_logits=expand(
            "<results>/teacher/{teacher}/fold{fold}/logits.npz",
            teacher=TEACHERS,
            fold=FOLDS,
        ),
        teacher_calibrated=expand(
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
        weights="<results>/ensemble/weights.json",
        rows=expand("<results>/student/fold{fold}/rows.json", fold=FOLDS),
    output:
        stages=report(
            "<results>/report/stages.svg",
            caption="../report/stages.rst",
            category="1 Scores",
            labels={"what": "2 log loss by stage"},
        ),
        reliability=report(
            "<results>/report/reliability.svg",
            caption="../report/reliability.rst",
            category="1 Scores",
            labels={"what": "3 accuracy against confidence"},
        ),
        confusion=report(
            "<results>/report/confusion.svg",
            caption="../report/confusion.rst",
            category="1 Scores",
            labels={"what": "4 confusion matrices"},
        ),
        swap=report(
            "<results>/report/swap.svg",
            caption="../report/swap.rst",
            category="1 Scores",
            labels={"what": "5 agreement between both orders"},
        ),
        curves=report(
            "<results>/report/curves.svg",
            caption="../report/curves.rst",
            category="3 Training",
            labels={"what": "2 training loss"},
        ),
        weights=report(
            "<results>/report/weights.svg",
            caption="../report/weights.rst",
            category="3 Training",
            labels={"what": "3 weights of folds and rows"},
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


rule measure_lengths:
    """Count tokens per row before the cut, and the tokens that the cut removes."""
    input:
        fold="<results>/folds/fold0.parquet",
        base=base_manifest,
    output:
        lengths="<results>/report/lengths.json",
        figure=report(
            "<results>/report/lengths.svg",
            caption="../report/lengths.rst",
            category="2 Data",
            labels={"what": "2 tokens per row"},
        ),
    log:
        "<logs>/measure_lengths/all.log",
    benchmark:
        "<benchmarks>/measure_lengths/all.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        text=config["text"],
        code=code_digest("measure_lengths.py"),
    script:
        "../scripts/measure_lengths.py"


rule summarise_report:
    """Write the summary that is printed when a run ends."""
    input:
        scores="<results>/report/scores.csv",
        steps="<results>/report/steps.csv",
        cleaning="<results>/data/cleaning.json",
        teacher_calibrations=expand(
            "<results>/teacher/{teacher}/fold{fold}/calibration.json",
            teacher=TEACHERS,
            fold=FOLDS,
        ),
        judge_calibrations=map(calibration_of, JUDGES),
        figures=rules.plot_report.output,
        submission=SUBMISSION,
    output:
        summary=report(
            "<results>/report/summary.md",
            caption="../report/summary.rst",
            category="Files",
            labels={"file": "summary.md"},
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


rule write_pages:
    """Write the report's pages, last: one of them has the time of every job.

    It shows the timing files and the run-time settings as they are at that moment.
    """
    input:
        scores="<results>/report/scores.csv",
        steps="<results>/report/steps.csv",
        cleaning="<results>/data/cleaning.json",
        folds="<results>/folds/folds.json",
        lengths="<results>/report/lengths.json",
        teacher_calibrations=expand(
            "<results>/teacher/{teacher}/fold{fold}/calibration.json",
            teacher=TEACHERS,
            fold=FOLDS,
        ),
        judge_calibrations=map(calibration_of, JUDGES),
        weights="<results>/ensemble/weights.json",
        fingerprinted=[
            *SETTINGS.data.files,
            *sorted({base_manifest({"model": name}) for name in MODELS}),
            "<results>/ensemble/adapter_model.safetensors",
            *expand("<results>/gptq/{bits}bit/model.safetensors", bits=BITS),
        ],
        summary="<results>/report/summary.md",
    output:
        scores=report(
            "<results>/report/scores.html",
            caption="../report/scores_page.rst",
            category="1 Scores",
            labels={"what": "1 scores and differences (tables)"},
        ),
        data=report(
            "<results>/report/data.html",
            caption="../report/data.rst",
            category="2 Data",
            labels={"what": "1 cleaning, folds, lengths (tables)"},
        ),
        models=report(
            "<results>/report/models.html",
            caption="../report/models.rst",
            category="3 Training",
            labels={"what": "1 gates and calibrations (tables)"},
        ),
        run=report(
            "<results>/report/run.html",
            caption="../report/run.rst",
            category="4 Run",
            labels={"what": "1 time, versions, configuration (tables)"},
        ),
    log:
        "<logs>/write_pages/all.log",
    benchmark:
        "<benchmarks>/write_pages/all.tsv"
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
        code=code_digest("write_pages.py"),
    script:
        "../scripts/write_pages.py"
