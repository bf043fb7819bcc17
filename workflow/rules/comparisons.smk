"""Comparisons of fixed models: ensembles of the folds, budgets of views.

in:  the fold students' adapters and predictions, the judges' predictions
out: <results>/ablation/ensemble.csv, tta.csv and known_priors.csv beside it

Nothing is trained here, so the intervals are over prompt groups and there are no seeds.
The ensembles are scored unmerged, which needs no second copy of the weights; one of
them is merged as well, to see what merging costs.
"""


use rule weigh_folds as weigh_ensemble with:
    input:
        fold_files=ENSEMBLES.fold_files,
        students=ENSEMBLES.students,
        baselines=ENSEMBLES.baselines,
    output:
        weights="<results>/ablation/ensemble/{ensemble}/weights.json",
    log:
        "<logs>/weigh_ensemble/{ensemble}.log",
    benchmark:
        "<benchmarks>/weigh_ensemble/{ensemble}.tsv"
    params:
        folds=ENSEMBLES.folds,
        fold_weights=ENSEMBLES.fold_weights,
        advantage=ENSEMBLES.advantage,
        views=VIEWS,
        code=code_digest("weigh_folds.py"),


use rule average_adapters as average_ensemble with:
    input:
        adapters=ENSEMBLES.adapters,
        configs=ENSEMBLES.adapter_configs,
        weights="<results>/ablation/ensemble/{ensemble}/weights.json",
    output:
        adapter="<results>/ablation/ensemble/{ensemble}/adapter_model.safetensors",
        config="<results>/ablation/ensemble/{ensemble}/adapter_config.json",
        report="<results>/ablation/ensemble/{ensemble}/average.json",
    log:
        "<logs>/average_ensemble/{ensemble}.log",
    benchmark:
        "<benchmarks>/average_ensemble/{ensemble}.tsv"
    params:
        folds=ENSEMBLES.folds,
        method=ENSEMBLES.method,
        code=code_digest("average_adapters.py"),


use rule merge_adapter as merge_ensemble with:
    input:
        base=base_manifest,
        adapter="<results>/ablation/ensemble/delta_mean/adapter_model.safetensors",
        config="<results>/ablation/ensemble/delta_mean/adapter_config.json",
    output:
        model="<results>/ablation/ensemble/merged/model.safetensors",
        config="<results>/ablation/ensemble/merged/config.json",
        tokenizer="<results>/ablation/ensemble/merged/tokenizer.json",
        tokenizer_config="<results>/ablation/ensemble/merged/tokenizer_config.json",
        report="<results>/ablation/ensemble/merged/merge.json",
    log:
        "<logs>/merge_ensemble/all.log",
    benchmark:
        "<benchmarks>/merge_ensemble/all.tsv"


use rule predict_view as predict_ensemble with:
    input:
        tables=["<results>/folds/fold0.parquet"],
        weights="<results>/ablation/ensemble/{ensemble}/adapter_model.safetensors",
        base=base_manifest,
    output:
        expand("<results>/ablation/ensemble/{{ensemble}}/{view}.parquet", view=VIEWS),
    log:
        "<logs>/predict_ensemble/{ensemble}.log",
    benchmark:
        "<benchmarks>/predict_ensemble/{ensemble}.tsv"
    wildcard_constraints:
        ensemble="|".join(ENSEMBLES.arms),
    params:
        views=VIEWS,
        splits=["select", "test"],
        precision="auto",
        text=config["text"],
        code=code_digest("predict_view.py"),


use rule predict_view as predict_merged_ensemble with:
    input:
        tables=["<results>/folds/fold0.parquet"],
        weights="<results>/ablation/ensemble/merged/model.safetensors",
        base=[],
    output:
        expand("<results>/ablation/ensemble/merged/{view}.parquet", view=VIEWS),
    log:
        "<logs>/predict_ensemble/merged.log",
    benchmark:
        "<benchmarks>/predict_ensemble/merged.tsv"
    params:
        views=VIEWS,
        splits=["select", "test"],
        precision="auto",
        text=config["text"],
        code=code_digest("predict_view.py"),


rule compare_ensembles:
    """Compare the ensembles, the best fold and the mean of the folds' predictions."""
    input:
        fold="<results>/folds/fold0.parquet",
        ensembles=expand(
            "<results>/ablation/ensemble/{ensemble}/{view}.parquet",
            ensemble=[*ENSEMBLES.arms, "merged"],
            view=VIEWS,
        ),
        students=expand(
            "<results>/predictions/fold{fold}_bf16/{view}.parquet",
            fold=FOLDS,
            view=VIEWS,
        ),
    output:
        table="<results>/ablation/ensemble.csv",
        text="<results>/ablation/ensemble.md",
    log:
        "<logs>/compare_ensembles/all.log",
    benchmark:
        "<benchmarks>/compare_ensembles/all.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        ensembles=[*ENSEMBLES.arms, "merged"],
        folds=FOLDS,
        views=VIEWS,
        method=config["calibration"]["judge"],
        evaluation=config["evaluation"],
        code=code_digest("compare_ensembles.py"),
    script:
        "../scripts/compare_ensembles.py"


rule ablation_ensemble:
    """Which way to make one model of the folds' students is best?"""
    input:
        "<results>/ablation/ensemble.csv",


# The dearest and the cheapest of the exported judges.
CASCADE = ["merged", f"gptq{min(BITS)}"]


rule compare_budgets:
    """Log loss against compute: second views, and a cascade, for uncertain rows."""
    input:
        fold="<results>/folds/fold0.parquet",
        judges=expand(
            "<results>/predictions/{model}/{view}.parquet", model=CASCADE, view=VIEWS
        ),
    output:
        table="<results>/ablation/tta.csv",
        text="<results>/ablation/tta.md",
        figure="<results>/ablation/tta.svg",
    log:
        "<logs>/compare_budgets/all.log",
    benchmark:
        "<benchmarks>/compare_budgets/all.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        judges=CASCADE,
        views=VIEWS,
        method=config["calibration"]["judge"],
        evaluation=config["evaluation"],
        code=code_digest("compare_budgets.py"),
    script:
        "../scripts/compare_budgets.py"


rule ablation_tta:
    """What do second views and a larger model gain where only some rows get them?"""
    input:
        "<results>/ablation/tta.csv",


rule compare_known_priors:
    """Known priors against the models, on rows with an empty answer or equal ones."""
    input:
        folds=expand("<results>/folds/fold{fold}.parquet", fold=FOLDS),
        baselines="<results>/predictions/baselines.parquet",
        students=expand(
            "<results>/predictions/fold{fold}_bf16/{view}.parquet",
            fold=FOLDS,
            view=VIEWS,
        ),
    output:
        table="<results>/ablation/known_priors.csv",
        text="<results>/ablation/known_priors.md",
    log:
        "<logs>/compare_known_priors/all.log",
    benchmark:
        "<benchmarks>/compare_known_priors/all.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        views=VIEWS,
        priors=config["predict"]["known_priors"],
        method=config["calibration"]["judge"],
        evaluation=config["evaluation"],
        code=code_digest("compare_known_priors.py"),
    script:
        "../scripts/compare_known_priors.py"


rule ablation_known_priors:
    """Do fixed probabilities beat the models on degenerate rows?"""
    input:
        "<results>/ablation/known_priors.csv",
