"""What to ask for beside everything: one stage, or everything of one fold."""


rule folds:
    """The cleaned pairs, split."""
    input:
        expand("<results>/folds/fold{fold}.parquet", fold=FOLDS),


rule teachers:
    """Every teacher's adapter of every fold."""
    input:
        expand(
            "<results>/teacher/{teacher}/fold{fold}/adapter_model.safetensors",
            teacher=TEACHERS,
            fold=FOLDS,
        ),


rule logits:
    """Every teacher's logits, raw and calibrated."""
    input:
        expand(
            "<results>/teacher/{teacher}/fold{fold}/calibrated.npz",
            teacher=TEACHERS,
            fold=FOLDS,
        ),


rule students:
    """The distilled student of every fold."""
    input:
        expand("<results>/student/fold{fold}/adapter_model.safetensors", fold=FOLDS),


rule merged:
    """The folds' students in one 16-bit model, with its calibration."""
    input:
        "<results>/merged/model.safetensors",
        "<results>/merged/calibration.json",


rule gptq:
    """The quantised judges, with their calibrations."""
    input:
        expand("<results>/gptq/{bits}bit/model.safetensors", bits=BITS),
        expand("<results>/gptq/{bits}bit/calibration.json", bits=BITS),


rule predictions:
    """The symmetrised predictions of every judge, and the submission."""
    input:
        expand(
            "<results>/predictions/{model}/symmetrised.parquet", model=[*JUDGES, FINAL]
        ),
        SUBMISSION,


rule release:
    """A folder to hand on for every judge, with card and example."""
    input:
        expand("<results>/release/{release}/judge.json", release=RELEASES),


rule report:
    """The scores of every stage, figures, tables and a summary."""
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
