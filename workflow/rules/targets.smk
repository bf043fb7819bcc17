"""Name targets: one stage of the run, or everything of one fold."""


rule folds:
    """Split the cleaned pairs into folds."""
    input:
        expand("<results>/folds/fold{fold}.parquet", fold=FOLDS),


rule teachers:
    """Train every teacher on every fold."""
    input:
        expand(
            "<results>/teacher/{teacher}/fold{fold}/adapter_model.safetensors",
            teacher=TEACHERS,
            fold=FOLDS,
        ),


rule logits:
    """Score with every teacher, and calibrate its logits."""
    input:
        expand(
            "<results>/teacher/{teacher}/fold{fold}/calibrated.npz",
            teacher=TEACHERS,
            fold=FOLDS,
        ),


rule students:
    """Distil the student of every fold."""
    input:
        expand("<results>/student/fold{fold}/adapter_model.safetensors", fold=FOLDS),


rule merged:
    """Merge the folds' students into one 16-bit model, and calibrate it."""
    input:
        "<results>/merged/model.safetensors",
        "<results>/merged/calibration.json",


rule gptq:
    """Quantise the judge to each width, and calibrate it."""
    input:
        expand("<results>/gptq/{bits}bit/model.safetensors", bits=BITS),
        expand("<results>/gptq/{bits}bit/calibration.json", bits=BITS),


rule predictions:
    """Predict with every judge, and write the submission."""
    input:
        expand(
            "<results>/predictions/{model}/symmetrised.parquet", model=[*JUDGES, FINAL]
        ),
        SUBMISSION,


rule release:
    """Write a release folder for every judge, with card and example."""
    input:
        expand("<results>/release/{release}/judge.json", release=RELEASES),


rule report:
    """Score every stage, and write figures, tables and a summary."""
    input:
        "<results>/report/run.html",


for k in FOLDS:

    rule:
        name:
            f"fold_{k}"
        input:
            expand(
                "<results>/teacher/{teacher}/fold{fold}/calibrated.npz",
                teacher=TEACHERS,
                fold=k,
            ),
            f"<results>/student/fold{k}/adapter_model.safetensors",
            f"<results>/predictions/fold{k}_bf16/logits.npz",
