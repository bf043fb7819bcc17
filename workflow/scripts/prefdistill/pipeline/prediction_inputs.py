"""Find the weights, rows and settings of each model that makes predictions, by name.

These are input and params functions of rules. A model is ``merged``, ``gptq{bits}``,
``fold{k}_{base}`` or ``adapters_{base}``. Imported by the Snakefile, so it stays light.
"""

from typing import Any


def calibration_of(model: str) -> str:
    """Name the file of a judge's own calibration."""
    if model == "merged":
        return "results/merged/calibration.json"
    if model.startswith("gptq"):
        return f"results/gptq/{model.removeprefix('gptq')}bit/calibration.json"
    return f"results/predictions/{model}/calibration.json"


def judge_calibration(wildcards: Any) -> str:
    """Name the calibration of the judge that a job symmetrises."""
    return calibration_of(wildcards.model)


def prediction_tables(wildcards: Any) -> list[str]:
    """List the tables that a model scores: a fold model its fold's, others fold 0's."""
    prefix = wildcards.model.partition("_")[0]
    fold = prefix if prefix.startswith("fold") else "fold0"
    return [f"results/folds/{fold}.parquet", "results/folds/unlabelled.parquet"]


def prediction_weights(wildcards: Any) -> str:
    """Name the weights of a model: a whole model's, or a fold student's adapter."""
    model = wildcards.model
    if model == "merged":
        return "results/merged/model.safetensors"
    if model.startswith("gptq"):
        return f"results/gptq/{model.removeprefix('gptq')}bit/model.safetensors"
    return f"results/student/{model.partition('_')[0]}/adapter_model.safetensors"


def prediction_splits(wildcards: Any) -> list[str]:
    """List the splits that a model scores; only a fold model has its own dev rows."""
    own = ["dev"] if wildcards.model.startswith("fold") else []
    return [*own, "select", "test", "unlabelled"]


def prediction_precision(wildcards: Any) -> str:
    """Return the precision of a model's base: NF4 if named so, else by the device."""
    return "nf4" if wildcards.model.endswith("_nf4") else "auto"
