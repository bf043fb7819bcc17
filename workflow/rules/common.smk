"""Validate the configuration and set the domains of wildcards; no rules."""

import os
import re
import sys

import yaml
from snakemake.dag import DAG
from snakemake.logging import logger

from prefdistill.errors import UserError, disk_fault
from prefdistill.pipeline.config_files import ConfigFault, read_config_file
from prefdistill.pipeline.config_schema import read_typed, validate_config
from prefdistill.pipeline.driver import hold_folder, write_owner
from prefdistill.pipeline.failed_jobs import FailedJobs
from prefdistill.pipeline.model_sizes import base_parameters
from prefdistill.pipeline.path_checks import BARE_SIGNS, check_cluster, check_path
from prefdistill.pipeline.students import Students
from prefdistill.pipeline.stale_files import follow_contents, keep_metadata
from prefdistill.pipeline.stops import end_on_signals, stop_jobs_on_signals
from prefdistill.pipeline.surroundings import name_root, name_user
from prefdistill.running.code_digests import code_digest
from prefdistill.running.records import freeze
from prefdistill.settings import Settings, read

name_user()
if workflow.is_main_process:
    end_on_signals()
    name_root(Path(workflow.basedir).parent)

with open(Path(workflow.basedir) / "schemas/config.schema.yaml") as handle:
    schema = yaml.safe_load(handle)
try:
    for path in workflow.configfiles if workflow.is_main_process else ():
        read_config_file(path)
    check_path("the workflow's folder", workflow.basedir, re.compile("[{}]"))
    check_path("the interpreter", sys.executable, BARE_SIGNS)
    given = workflow.config_settings.config
    validated = validate_config(read_typed(config, given, schema, schema), schema)
    SETTINGS = read(Settings, validated)
    PARAMETERS = {
        name: base_parameters(name, base) for name, base in SETTINGS.base_models.items()
    }
except (UserError, ConfigFault) as error:
    sys.exit(f"error: {error!s:.1000}")  # a value may be long
# Rules take their params from `config`: Snakemake stores and compares plain values.
config.clear()
config.update(validated)

# Only a driver locks its folder, not the Snakemake process of a job.
try:
    folder_lock = hold_folder() if workflow.is_main_process else None
except UserError as error:
    sys.exit(f"error: {error}")
if workflow.is_main_process:
    logger.addHandler(FailedJobs())
    keep_metadata(create=False)
    follow_contents(DAG)


def begin_driving():
    """Record this driver, and stop its jobs on a signal; called before the first job."""
    try:
        if not workflow.local_exec:  # only now Snakemake knows
            paths = [*workflow.configfiles, workflow.basedir, os.getcwd()]
            words = workflow.config_settings.config_args or ()
            check_cluster(paths, words)
        write_owner()
        freeze(config)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {disk_fault(error) or error}")
    keep_metadata(create=True)
    stop_jobs_on_signals(workflow)


TEACHERS = list(SETTINGS.teachers)
MODELS = list(SETTINGS.models)
FOLDS = list(range(SETTINGS.folds.n))
BITS = config["quantisation"]["bits"]
VIEWS = config["predict"]["views"]
STUDENTS = Students(SETTINGS)
JUDGES = ["merged", *[f"gptq{bits}" for bits in BITS]]
RELEASES = ["merged", *[f"gptq{bits}bit" for bits in BITS]]
JUDGE_FILES = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "calibration.json",
    "judge.json",
]
FINAL = SETTINGS.predict.final
CHOSEN_FOLDS = config["predict"]["folds"]
if isinstance(CHOSEN_FOLDS, str):
    CHOSEN_FOLDS = FOLDS
# The share of the boosted trees in the final prediction.
TREES_WEIGHT = config["predict"]["trees_weight"]
SUBMISSION = ["results/submission.csv"] if SETTINGS.data.test else []

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
    """Write a regular expression of the base models of one source, for {base}."""
    bases = SETTINGS.base_models.items()
    names = [name for name, base in bases if base.source == source]
    return "|".join(map(re.escape, names)) or "$^"
