"""The files that a scored model is made of and the rows it scores, by its name.

Input and params functions of the rules; a model is ``merged``, ``gptq{bits}``,
``fold{k}_{base}`` or ``adapters_{base}``. Imported by the Snakefile, so it stays light.
"""

from typing import Any


def calibration_of(model: str) -> str:
    """The path of a judge's own calibration."""
    if model == "merged":
        return "results/merged/calibration.json"
    if model.startswith("gptq"):
        return f"results/gptq/{model.removeprefix('gptq')}bit/calibration.json"
    return f"results/predictions/{model}/calibration.json"


def judge_calibration(wildcards: Any) -> str:
    """The calibration of the judge that a job symmetrises."""
    return calibration_of(wildcards.model)


def prediction_tables(wildcards: Any) -> list[str]:
    """The pairs that a model scores: a fold model its own fold's, others fold 0's."""
    prefix = wildcards.model.partition("_")[0]
    fold = prefix if prefix.startswith("fold") else "fold0"
    return [f"results/folds/{fold}.parquet", "results/folds/unlabelled.parquet"]


def prediction_weights(wildcards: Any) -> str:
    """The weights of a scored model: a whole model's, or a fold student's adapter."""
    model = wildcards.model
    if model == "merged":
        return "results/merged/model.safetensors"
    if model.startswith("gptq"):
        return f"results/gptq/{model.removeprefix('gptq')}bit/model.safetensors"
    return f"results/student/{model.partition('_')[0]}/adapter_model.safetensors"


def prediction_splits(wildcards: Any) -> list[str]:
    """The splits that a model scores; only a fold model has dev rows of its own."""
    own = ["dev"] if wildcards.model.startswith("fold") else []
    return [*own, "select", "test", "unlabelled"]


def prediction_precision(wildcards: Any) -> str:
    """How a model's base is loaded: NF4 if named so, else as the device likes it."""
    return "nf4" if wildcards.model.endswith("_nf4") else "auto"
