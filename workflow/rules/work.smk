"""Define resource functions: memory, minutes, threads and GPUs of jobs.

Resources are no params of a rule, because they do not change the result.
"""

from prefdistill.pipeline.cost_model import (
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
from prefdistill.pipeline.pair_counts import count_pairs, scored_pairs

PAIRS = count_pairs(SETTINGS.data, SETTINGS.folds, SETTINGS.simulation)
MAX_LENGTH = SETTINGS.text.max_length
SIZES = {
    name: Size(PARAMETERS[model.base], model.gpus, model.lora.r)
    for name, model in SETTINGS.models.items()
}
STUDENT = SIZES["student"]


def memory_of(work):
    """Return a resource function: MB of main memory for the work of a job."""

    def memory_mb(wildcards, attempt):
        return work(wildcards).memory_mb(attempt)

    return memory_mb


def minutes_of(work):
    """Return a resource function: the time limit for the work of a job."""

    def minutes(wildcards, attempt):
        return work(wildcards).time_limit(
            attempt,
            gpu_tflops=SETTINGS.gpu_tflops,
            runtime_safety=SETTINGS.runtime_safety,
            max_runtime=SETTINGS.max_runtime,
        )

    minutes.work = work  # which `make plan` and `make status` add up
    return minutes


def model_size(wildcards):
    """Return the size of the model that a job is about."""
    return SIZES[model_name(wildcards)]


def model_threads(wildcards):
    """Return the cores of a job with a model."""
    return model_size(wildcards).threads


def model_gpus(wildcards):
    """Return the GPUs of a job with a model."""
    return model_size(wildcards).gpus


def handling_tables(wildcards):
    """Estimate a job on tables, without a model."""
    return light_work(PAIRS.all)


def getting_base(wildcards):
    """Estimate the job that gets a base model."""
    name = wildcards.base
    return base_work(PARAMETERS[name], SETTINGS.base_models[name], MAX_LENGTH)


def checking(wildcards):
    """Estimate the job that looks at each model."""
    return check_work(list(SIZES.values()))


def training(section, n_pairs):
    """Return a function that estimates training by one section of a model."""

    def work(wildcards):
        settings = getattr(SETTINGS.models[model_name(wildcards)], section)
        return training_work(model_size(wildcards), settings, n_pairs, MAX_LENGTH)

    return work


def scoring(wildcards):
    """Estimate the job in which a teacher scores the rows of a fold."""
    inference = SETTINGS.models[model_name(wildcards)].inference
    n_pairs = scored_pairs(inference, PAIRS)
    return scoring_work(model_size(wildcards), n_pairs, MAX_LENGTH)


def predicting(wildcards):
    """Estimate the predictions of a model; only a fold's has dev rows of its own."""
    n_pairs = PAIRS.held_out + PAIRS.unlabelled
    if not wildcards.get("model", "").startswith(("merged", "gptq")):
        n_pairs += PAIRS.dev
    return scoring_work(STUDENT, n_pairs, MAX_LENGTH, len(VIEWS))


def averaging(wildcards):
    """Estimate the averaging of the folds' adapters."""
    return average_work(STUDENT, len(FOLDS))


def merging(wildcards):
    """Estimate the merging of the averaged adapter."""
    return merge_work(STUDENT, len(FOLDS))


def quantising(wildcards):
    """Estimate the quantisation of the student."""
    n_pairs = SETTINGS.quantisation.n_calibration_pairs
    return quantise_work(STUDENT, n_pairs, MAX_LENGTH, int(wildcards.bits))
