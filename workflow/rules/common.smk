"""Validation, wildcard domains and input functions; no rules."""

import re
import sys

import yaml
from snakemake.logging import logger

sys.path.insert(0, str(Path(workflow.basedir) / "scripts"))

from prefdistill.pipeline.students import Students
from prefdistill.pipeline.validation import (validate_config)
from prefdistill.settings import (result_settings)
from prefdistill.pipeline.config_files import check_config_file
from prefdistill.pipeline.driver import hold_folder, write_owner
from prefdistill.errors import UserError
from prefdistill.pipeline.sizes import (
    SIMULATED_FOLDER,
    base_parameters,
    count_pairs,
    scored_pairs,
)
from prefdistill.pipeline.failed_jobs import FailedJobs
from prefdistill.pipeline.scored_models import (
    calibration_of,
    judge_calibration,
    prediction_precision,
    prediction_splits,
    prediction_tables,
    prediction_weights,
)
from prefdistill.pipeline.code_digests import code_digest
from prefdistill.pipeline.costs import (
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
    for path in workflow.configfiles if workflow.is_main_process else ():
        check_config_file(path)
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
if workflow.is_main_process:
    logger.addHandler(FailedJobs())

# --- domains -----------------------------------------------------------------------

TEACHERS = list(config["teachers"])
MODELS = [*TEACHERS, "student"]
FOLDS = list(range(config["folds"]["n"]))
BITS = config["quantisation"]["bits"]
VIEWS = config["predict"]["views"]
STUDENTS = Students(config)
JUDGES = ["merged", *[f"gptq{bits}" for bits in BITS]]
RELEASES = ["merged", *[f"gptq{bits}bit" for bits in BITS]]
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
        config["data"]["unlabelled"],
    )
    for entry in entries
    if isinstance(entry, str)
]
# Whether all labelled pairs are simulated.
SIMULATED = all(
    str(path).startswith(SIMULATED_FOLDER) for path in config["data"]["train"]
)
# The share of the boosted trees in the final prediction.
TREES_WEIGHT = config["predict"]["trees_weight"]
SUBMISSION = ["results/submission.csv"] if config["data"]["test"] else []

ADAPTER_BASES = "bf16|nf4|gptq4"
WHOLE_MODELS = r"merged|gptq\d+"
FOLD_MODELS = rf"fold\d+_(?:{ADAPTER_BASES})"
SCORED_MODELS = f"{WHOLE_MODELS}|{FOLD_MODELS}"
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


BASES = {
    name: config["base_models"][model_config({"model": name})["base"]]
    for name in MODELS
}


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


# --- which rows are scored, with which weights, and how -----------------------------


def inference_section(wildcards):
    """Where the configuration says how many tokens a teacher scores at once."""
    teacher = wildcards.get("teacher")
    return [*(["teachers", teacher] if teacher else ["student"]), "inference"]


def teacher_scoring(wildcards):
    """How a teacher, or a student as one, scores the rows of a fold; by an arm's seed."""
    model = model_config(wildcards)
    return {
        **result_settings(model["inference"]),
        "precision": model["precision"],
        "seed": int(wildcards.get("seed", model["training"]["seed"])),
    }


def judge_scoring(precision, splits):
    """How the student's models are scored: precision and splits, or functions."""

    def settings(wildcards):
        return {
            "precision": precision(wildcards) if callable(precision) else precision,
            "splits": splits(wildcards) if callable(splits) else splits,
            "views": VIEWS,
        }

    return settings


def prediction_base(wildcards):
    """The base under a fold student's adapter; none under a whole model."""
    model = wildcards.model
    if not model.startswith("fold"):
        return []
    if model.endswith("_gptq4"):
        return "results/gptq_base/4bit/model.safetensors"
    return base_manifest({})


def best_fold_table(wildcards):
    """The rows of select, where the best fold is to be chosen on them."""
    return (
        ["results/folds/fold0.parquet"] if config["predict"]["folds"] == "best" else []
    )


# --- what the report compares -------------------------------------------------------


def simulator_truth(wildcards):
    """The judge's true probabilities, while the data are the simulator's."""
    return ["results/simulated/truth.parquet"] if SIMULATED else []


def labels_only_predictions(wildcards):
    """Predictions of the students trained on labels alone, if they are asked for."""
    wanted = config["evaluation"]["labels_only"]
    return STUDENTS.predictions("labels_only", seed=0) if wanted else []


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

    minutes.work = work  # which `make plan` and `make status` add up
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
    return quantise_work(STUDENT, n_pairs, MAX_LENGTH, int(wildcards.bits))
