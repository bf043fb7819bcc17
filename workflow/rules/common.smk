"""Validation, wildcard domains and input functions; no rules."""

import re
import sys

import yaml

sys.path.insert(0, str(Path(workflow.basedir) / "scripts"))

from prefdistill.config import SIMULATED_FOLDER, result_settings, validate_config
from prefdistill.driver import hold_folder, write_owner
from prefdistill.estimates import base_parameters, count_pairs, scored_pairs
from prefdistill.job import UserError
from prefdistill.provenance import code_digest
from prefdistill.resources import (
    Size,
    average_work,
    base_work,
    check_work,
    light_work,
    merge_work,
    quantise_work,
    scoring_work,
    training_work,
)

with open(Path(workflow.basedir) / "schemas/config.schema.yaml") as handle:
    schema = yaml.safe_load(handle)
try:
    validated = validate_config(config, schema)
    PARAMETERS = {
        name: base_parameters(name, base)
        for name, base in validated["base_models"].items()
    }
except UserError as error:
    sys.exit(f"error: {error}")
config.clear()
config.update(validated)

# A driver's share of its folder's lock, and not that of a job's own Snakemake.
folder_lock = hold_folder() if workflow.is_main_process else None

# --- domains -----------------------------------------------------------------------

TEACHERS = list(config["teachers"])
MODELS = [*TEACHERS, "student"]
FOLDS = list(range(config["folds"]["n"]))
BITS = config["quantisation"]["bits"]
VIEWS = config["predict"]["views"]
JUDGES = ["merged", *[f"gptq{bits}" for bits in BITS]]
FINAL = config["predict"]["model"]
if FINAL == "adapters":
    FINAL = f"adapters_{config['predict']['base']}"
TEACHER_SCALING = {key: config["calibration"][key] for key in ("method", "tied")}
CHOSEN_FOLDS = config["predict"]["folds"]
if isinstance(CHOSEN_FOLDS, str):
    CHOSEN_FOLDS = FOLDS
DATA_FILES = [
    entry
    for entries in (
        config["data"]["train"],
        config["data"]["extra"],
        config["data"]["ultra"],
        [config["data"]["test"]] if config["data"]["test"] else [],
    )
    for entry in entries
    if isinstance(entry, str)
]
SUBMISSION = ["results/submission.csv"] if config["data"]["test"] else []

ADAPTER_BASES = "bf16|nf4|gptq4"
SCORED_MODELS = rf"merged|gptq\d+|fold\d+_(?:{ADAPTER_BASES})"
ADAPTER_MODELS = rf"(?:adapters|fold\d+)_(?:{ADAPTER_BASES})"


wildcard_constraints:
    teacher="|".join(TEACHERS),
    model="[A-Za-z0-9_]+",
    fold=r"\d+",
    bits="8|4",
    seed=r"\d+",


def base_names(source):
    """A regular expression of the base models of one source, for {base}."""
    names = [n for n, base in config["base_models"].items() if base["source"] == source]
    return "|".join(map(re.escape, names)) or "$^"


# --- what a model is made of, and how it is trained --------------------------------


def model_config(wildcards):
    """The configuration of the teacher or student that a job is about."""
    name = wildcards.get("teacher", wildcards.get("model", "student"))
    return config["student"] if name == "student" else config["teachers"][name]


def base_manifest(wildcards):
    """The manifest of the base model that a job starts from."""
    return f"results/base/{model_config(wildcards)['base']}/manifest.json"


def settings_of(section):
    """An input function for the settings of one section that change the result."""

    def settings(wildcards):
        return result_settings(model_config(wildcards)[section])

    return settings


def model_precision(wildcards):
    """How the frozen base of a model is stored."""
    return model_config(wildcards)["precision"]


def model_lora(wildcards):
    """The adapter's shape."""
    return model_config(wildcards)["lora"]


def quantisation_settings(wildcards):
    """The quantisation section without the list of widths: each job has its own."""
    return {k: v for k, v in config["quantisation"].items() if k != "bits"}


# --- what the student learns from ---------------------------------------------------


def distillation_folds(wildcards):
    """The folds whose teachers' logits a student needs."""
    in_fold = config["distillation"]["labels"] == "in_fold"
    return [wildcards.fold] if in_fold else FOLDS


def student_logits(wildcards):
    """The teachers' logits, teacher by teacher."""
    return expand(
        "results/teacher/{teacher}/fold{fold}/{kind}.npz",
        teacher=TEACHERS,
        fold=distillation_folds(wildcards),
        kind=(
            "calibrated"
            if config["distillation"]["logits"] == "calibrated"
            else "logits"
        ),
    )


def student_gates(wildcards):
    """The teachers' information gains, teacher by teacher, unless no gate is asked for."""
    if config["distillation"]["teacher_gate"] == "off":
        return []
    return expand(
        "results/teacher/{teacher}/fold{fold}/calibration.json",
        teacher=TEACHERS,
        fold=distillation_folds(wildcards),
    )


# --- what is predicted, with which weights ------------------------------------------


def calibration_of(model):
    """The path of a judge's own calibration."""
    if model == "merged":
        return "results/merged/calibration.json"
    if model.startswith("gptq"):
        return f"results/gptq/{model.removeprefix('gptq')}bit/calibration.json"
    return f"results/predictions/{model}/calibration.json"


def judge_calibration(wildcards):
    """The calibration of the judge that a job symmetrises."""
    return calibration_of(wildcards.model)


def prediction_tables(wildcards):
    """The pairs that a model scores: a fold model its own fold's, others fold 0's."""
    prefix = wildcards.model.partition("_")[0]
    fold = prefix if prefix.startswith("fold") else "fold0"
    return [f"results/folds/{fold}.parquet", "results/folds/unlabelled.parquet"]


def prediction_weights(wildcards):
    """The weights of a scored model: a whole model's, or a fold student's adapter."""
    model = wildcards.model
    if model == "merged":
        return "results/merged/model.safetensors"
    if model.startswith("gptq"):
        return f"results/gptq/{model.removeprefix('gptq')}bit/model.safetensors"
    return f"results/student/{model.partition('_')[0]}/adapter_model.safetensors"


def prediction_base(wildcards):
    """The base under a fold student's adapter; none under a whole model."""
    model = wildcards.model
    if not model.startswith("fold"):
        return []
    if model.endswith("_gptq4"):
        return "results/gptq_base/4bit/model.safetensors"
    return base_manifest({})


def prediction_splits(wildcards):
    """The splits that a model scores; only a fold model has dev rows of its own."""
    own = ["dev"] if wildcards.model.startswith("fold") else []
    return [*own, "select", "test", "unlabelled"]


def prediction_precision(wildcards):
    """How a model's base is loaded: NF4 if named so, else as the device likes it."""
    return "nf4" if wildcards.model.endswith("_nf4") else "auto"


def best_fold_table(wildcards):
    """The rows of select, where the best fold is to be chosen on them."""
    return (
        ["results/folds/fold0.parquet"] if config["predict"]["folds"] == "best" else []
    )


# --- what the report compares -------------------------------------------------------


def simulator_truth(wildcards):
    """The judge's true probabilities, while the data are the simulator's."""
    simulated = all(
        str(path).startswith(SIMULATED_FOLDER) for path in config["data"]["train"]
    )
    return ["results/simulated/truth.parquet"] if simulated else []


def labels_only_predictions(wildcards):
    """Predictions of the students trained on labels alone, if they are asked for."""
    if not config["evaluation"]["labels_only"]:
        return []
    return expand(
        "results/ablation/labels_only/seed0/fold{fold}/{view}.parquet",
        fold=FOLDS,
        view=VIEWS,
    )


# --- the arms of the distillation ablation ------------------------------------------

FEW = config["ablation"]["n_few_labels"]
ARMS = {
    "distilled": {},
    "labels_only": {"teachers": []},
    "distilled_few": {"distillation": {"n_labelled_rows": FEW}},
    "labels_only_few": {"teachers": [], "training": {"n_rows": FEW}},
    "labels_only_few_long": {
        "teachers": [],
        "training": {
            "n_rows": FEW,
            "epochs": 4 * config["student"]["training"]["epochs"],
        },
    },
}


def arm_teachers(wildcards):
    """The teachers of an arm; none for one that learns from labels alone."""
    return ARMS[wildcards.arm].get("teachers", TEACHERS)


def arm_inputs(files_of):
    """An input function: the student's teacher files, if the arm has teachers."""

    def files(wildcards):
        return files_of(wildcards) if arm_teachers(wildcards) else []

    return files


def arm_training(wildcards):
    """The student's training settings with the arm's changes and seed."""
    changes = ARMS[wildcards.arm].get("training", {})
    settings = settings_of("training")(wildcards) | changes
    return settings | {"seed": int(wildcards.seed)}


def arm_distillation(wildcards):
    """The distillation settings with the arm's changes."""
    return config["distillation"] | ARMS[wildcards.arm].get("distillation", {})


# --- what a job asks for ------------------------------------------------------------
# None of it is a parameter of a rule, as it does not change the result.

PAIRS = count_pairs(config)
MAX_LENGTH = config["text"]["max_length"]


def memory_of(work):
    """A resource function: MB of main memory for the work of a job."""

    def memory_mb(wildcards, attempt):
        return work(wildcards).memory_mb(attempt)

    return memory_mb


def minutes_of(work):
    """A resource function: the time limit for the work of a job."""

    def minutes(wildcards, attempt):
        return work(wildcards).time_limit(attempt, config)

    return minutes


def model_size(wildcards):
    """The size of the model that a job is about."""
    settings = model_config(wildcards)
    return Size(PARAMETERS[settings["base"]], settings["gpus"], settings["lora"]["r"])


STUDENT = model_size({})
SIZES = [model_size({"model": model}) for model in MODELS]


def model_threads(wildcards):
    """The cores of a job with a model."""
    return model_size(wildcards).threads


def model_gpus(wildcards):
    """The GPUs of a job with a model."""
    return model_size(wildcards).gpus


def handling_tables(wildcards):
    """The work of a job on tables, without a model."""
    return light_work(PAIRS.all)


def getting_base(wildcards):
    """The work of getting a base model."""
    name = wildcards.base
    return base_work(PARAMETERS[name], config["base_models"][name], MAX_LENGTH)


def checking(wildcards):
    """The work of a look at each model."""
    return check_work(SIZES)


def training(section, n_pairs):
    """The work of training by one section of a model's settings."""

    def work(wildcards):
        settings = model_config(wildcards)[section]
        return training_work(model_size(wildcards), settings, n_pairs, MAX_LENGTH)

    return work


def scoring(wildcards):
    """The work of a teacher that scores the rows of a fold."""
    n_pairs = scored_pairs(model_config(wildcards)["inference"], PAIRS)
    return scoring_work(model_size(wildcards), n_pairs, MAX_LENGTH)


def predicting(wildcards):
    """The work of a scored model; only a fold's has dev rows of its own."""
    n_pairs = PAIRS.held_out + PAIRS.unlabelled
    if not wildcards.get("model", "").startswith(("merged", "gptq")):
        n_pairs += PAIRS.dev
    return scoring_work(STUDENT, n_pairs, MAX_LENGTH, len(VIEWS))


def averaging(wildcards):
    """The work of averaging the folds' adapters."""
    return average_work(STUDENT, len(FOLDS))


def merging(wildcards):
    """The work of merging the averaged adapter."""
    return merge_work(STUDENT, len(FOLDS))


def quantising(wildcards):
    """The work of quantising the student."""
    n_pairs = config["quantisation"]["n_calibration_pairs"]
    return quantise_work(STUDENT, n_pairs, MAX_LENGTH)
