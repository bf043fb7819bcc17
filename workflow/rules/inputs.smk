"""Define input and params functions; params are plain values of `config`."""

from prefdistill.pipeline.prediction_inputs import (
    calibration_of,
    judge_calibration,
    prediction_precision,
    prediction_splits,
    prediction_tables,
    prediction_weights,
)
from prefdistill.settings import result_settings

# --- models and their training -------------------------------------------------------


def model_name(wildcards):
    """Name the teacher or student that a job is about."""
    return wildcards.get("teacher", wildcards.get("model", "student"))


def model_config(wildcards):
    """Return the configuration of the teacher or student that a job is about."""
    name = model_name(wildcards)
    return config["student"] if name == "student" else config["teachers"][name]


def base_manifest(wildcards):
    """Name the manifest of the base model that a job starts from."""
    return f"results/base/{model_config(wildcards)['base']}/manifest.json"


BASES = {
    name: config["base_models"][model.base] for name, model in SETTINGS.models.items()
}


def settings_of(section):
    """Return a params function for what in one section decides the result."""

    def settings(wildcards):
        return result_settings(model_config(wildcards)[section])

    return settings


def section_of(name):
    """Return a params function for where the configuration says how a job runs."""

    def section(wildcards):
        model = model_name(wildcards)
        return [*(["student"] if model == "student" else ["teachers", model]), name]

    return section


def model_precision(wildcards):
    """Return the precision of a model's frozen base."""
    return model_config(wildcards)["precision"]


def model_lora(wildcards):
    """Return the shape of a model's adapter."""
    return model_config(wildcards)["lora"]


TEACHER_SCALING = {key: config["calibration"][key] for key in ("method", "tied")}


def quantisation_settings(wildcards):
    """Return the quantisation section without the widths: each job has its own."""
    return {k: v for k, v in config["quantisation"].items() if k != "bits"}


# --- scoring -------------------------------------------------------------------------


def teacher_scoring(wildcards):
    """Return how a teacher, or a student as one, scores a fold; an arm has its seed."""
    model = model_config(wildcards)
    return {
        **result_settings(model["inference"]),
        "precision": model["precision"],
        "seed": int(wildcards.get("seed", model["training"]["seed"])),
    }


def judge_scoring(precision, splits):
    """Return a params function: how the student's models score; values or functions."""

    def settings(wildcards):
        return {
            "precision": precision(wildcards) if callable(precision) else precision,
            "splits": splits(wildcards) if callable(splits) else splits,
            "views": VIEWS,
        }

    return settings


def prediction_base(wildcards):
    """Name the base under a fold student's adapter; none under a whole model."""
    model = wildcards.model
    if not model.startswith("fold"):
        return []
    if model.endswith("_gptq4"):
        return "results/gptq_base/4bit/model.safetensors"
    return base_manifest({})


def best_fold_table(wildcards):
    """List the table with the rows of select, where the best fold is chosen on them."""
    best = config["predict"]["folds"] == "best"
    return ["results/folds/fold0.parquet"] if best else []


# --- the ensemble --------------------------------------------------------------------

# The folds whose students have to be scored before their weights are known.
WEIGHED_FOLDS = FOLDS if SETTINGS.ensemble.fold_weights == "advantage" else []


def reward_baselines(wildcards):
    """List the predictions that the folds' rewards are taken against, if any."""
    baseline = SETTINGS.ensemble.advantage.baseline if WEIGHED_FOLDS else "none"
    if baseline == "ema":
        ema = "<results>/predictions/fold{fold}_ema/logits.npz"
        return expand(ema, fold=WEIGHED_FOLDS)
    return {"trees": ["<results>/predictions/baselines.parquet"], "none": []}[baseline]


# --- the report ----------------------------------------------------------------------


def simulator_truth(wildcards):
    """List the judge's true probabilities, if the data are simulated."""
    truth = "results/simulated/truth.parquet"
    return [truth] if SETTINGS.data.is_simulated else []


def labels_only_predictions(wildcards):
    """List predictions of students trained on labels alone, if they are asked for."""
    wanted = SETTINGS.evaluation.labels_only
    return STUDENTS.predictions("labels_only", seed=0) if wanted else []
