"""Calibrate the teachers on their dev rows, and the judges on select."""


rule calibrate_logits:
    """Fit a teacher's vector scaling on dev rows and apply it to all of its logits."""
    input:
        logits="<results>/teacher/{teacher}/fold{fold}/logits.npz",
        adapter="<results>/teacher/{teacher}/fold{fold}/adapter_model.safetensors",
        fold="<results>/folds/fold{fold}.parquet",
    output:
        calibrated="<results>/teacher/{teacher}/fold{fold}/calibrated.npz",
        record="<results>/teacher/{teacher}/fold{fold}/calibration.json",
    log:
        "<logs>/calibrate_logits/{teacher}.fold{fold}.log",
    benchmark:
        "<benchmarks>/calibrate_logits/{teacher}.fold{fold}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        scaling=TEACHER_SCALING,
        code=code_digest("calibrate_logits.py"),
    script:
        "../scripts/calibrate_logits.py"


rule calibrate_judge:
    """Fit the merged model's own tied scaling on select."""
    input:
        logits="<results>/predictions/merged/logits.npz",
        fold="<results>/folds/fold0.parquet",
    output:
        calibration="<results>/merged/calibration.json",
        settings="<results>/merged/judge.json",
    log:
        "<logs>/calibrate_judge/merged.log",
    benchmark:
        "<benchmarks>/calibrate_judge/merged.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=memory_of(handling_tables),
        runtime=minutes_of(handling_tables),
    params:
        text=config["text"],
        method=config["calibration"]["judge"],
        code=code_digest("calibrate_judge.py"),
    script:
        "../scripts/calibrate_judge.py"


use rule calibrate_judge as calibrate_quantised_judge with:
    input:
        logits="<results>/predictions/gptq{bits}/logits.npz",
        fold="<results>/folds/fold0.parquet",
    output:
        calibration="<results>/gptq/{bits}bit/calibration.json",
        settings="<results>/gptq/{bits}bit/judge.json",
    log:
        "<logs>/calibrate_judge/gptq{bits}.log",
    benchmark:
        "<benchmarks>/calibrate_judge/gptq{bits}.tsv"


use rule calibrate_judge as calibrate_adapters with:
    input:
        logits="<results>/predictions/{model}/logits.npz",
        fold="<results>/folds/fold0.parquet",
    output:
        calibration="<results>/predictions/{model}/calibration.json",
    log:
        "<logs>/calibrate_judge/{model}.log",
    benchmark:
        "<benchmarks>/calibrate_judge/{model}.tsv"
    wildcard_constraints:
        model=ADAPTER_MODELS,
    params:  # the others stay; no judge.json
        text=None,
