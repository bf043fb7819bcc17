"""Refuse settings that are valid one by one but contradict each other, or the disk.

Imported by the Snakefile, so it stays light: the standard library.
"""

import string
from collections.abc import Sequence
from pathlib import Path

from prefdistill.errors import UserError
from prefdistill.pipeline.base_model_checks import check_bases, check_shapes
from prefdistill.pipeline.path_checks import check_path
from prefdistill.settings import (
    SIMULATED_FOLDER,
    DataSettings,
    DistillationSettings,
    FoldSettings,
    HubData,
    ModelSettings,
    PredictSettings,
    Settings,
    SimulationSettings,
    TextSettings,
)

SIMULATED_FILES = [
    f"{SIMULATED_FOLDER}{n}.csv" for n in ("train", "extra", "ultra", "test")
]
KINDS = tuple(
    f".{kind}{packed}" for kind in ("csv", "jsonl") for packed in ("", ".gz", ".zst")
) + (".parquet",)
COLUMNS = (
    *("id", "model_a", "model_b", "prompt", "response_a", "response_b"),
    *("winner_model_a", "winner_model_b", "winner_tie"),
)
# Bytes of a file whose rows are counted: reading it takes milliseconds.
SMALL_FILE = 1 << 20
HELD_OUT = 2  # select and test, beside the folds
TEMPLATE_FIELDS = ["prompt", "response_a", "response_b"]


def check_config(settings: Settings) -> None:
    """Refuse settings that are valid one by one but contradict each other.

    Args:
        settings: The configuration, validated against the schema.

    Raises:
        UserError: One line with key path, value, and what is allowed.
    """
    for name, base in settings.base_models.items():
        if base.path:
            check_path(f"config: base_models.{name}.path", base.path)
    check_bases(settings.base_models, settings.student.base)
    models = {f"teachers.{name}": each for name, each in settings.teachers.items()}
    models["student"] = settings.student
    for place, model in models.items():
        _check_model(place, model, list(settings.base_models))
    check_shapes(models, settings.base_models, settings.quantisation.group_size)
    _check_data(settings.data)
    _check_rows(settings.data, settings.simulation, settings.folds.n)
    _check_text(settings.text)
    _check_folds(settings.folds)
    _check_fold_weights(settings)
    _check_distillation(settings.distillation, settings.data)
    _check_predict(settings.predict, settings.folds.n, settings.quantisation.bits)
    _check_scratch(settings.scratch)


def _check_scratch(scratch: str) -> None:
    check_path("config: scratch", scratch)
    path = Path(scratch)
    if path.exists() and not path.is_dir():
        raise UserError(f"config: scratch: {scratch!r} is a file; it must be a folder")
    if path.resolve().is_relative_to(Path("results").resolve()):
        raise UserError(
            f"config: scratch: {scratch!r} lies in results; it must be a folder that "
            "may be deleted"
        )


def _check_predict(predict: PredictSettings, n_folds: int, bits: Sequence[int]) -> None:
    model, named = predict.model, predict.folds
    if not isinstance(named, str) and max(named) >= n_folds:
        raise UserError(
            f"config: predict.folds: {list(named)} names a fold beyond {n_folds - 1}"
        )
    if model.startswith("gptq") and int(model[4:]) not in bits:
        raise UserError(
            f"config: predict.model: {model!r} needs {model[4:]} in quantisation.bits, "
            f"which is {list(bits)}"
        )


def _check_distillation(distillation: DistillationSettings, data: DataSettings) -> None:
    weights = distillation.weights
    if weights.ce + weights.per_teacher == 0:
        raise UserError("config: distillation.weights are all 0; give one a weight")
    if distillation.pseudo_labels.weight and not (data.unlabelled or data.test):
        raise UserError(
            "config: distillation.pseudo_labels.weight: there are no unlabelled pairs; "
            "set data.unlabelled, or a weight of 0"
        )
    if distillation.ema.use and not distillation.ema.decay:
        raise UserError(
            "config: distillation.ema.use: there is no mean to use; set "
            "distillation.ema.decay, such as 0.99"
        )


def _check_model(place: str, model: ModelSettings, bases: list[str]) -> None:
    """Check a teacher's or the student's settings against each other."""
    if model.base not in bases:
        raise UserError(
            f"config: {place}.base: {model.base!r} is not in base_models "
            f"({', '.join(bases)})"
        )
    rows, n_rows = model.inference.rows, model.inference.n_rows
    if rows and rows[0] >= rows[1]:
        raise UserError(
            f"config: {place}.inference.rows: {list(rows)} is empty; it must be "
            "[start, end) with start < end"
        )
    if rows and n_rows:
        raise UserError(
            f"config: {place}.inference.n_rows: {n_rows} and rows {list(rows)} exclude "
            "each other; leave one out"
        )
    for section in ("training", "post_pretrain"):
        training = getattr(model, section)
        warm_up, steps = training.warmup_steps, training.max_steps
        if warm_up and steps and warm_up >= steps:
            raise UserError(
                f"config: {place}.{section}.warmup_steps: {warm_up} is not allowed "
                f"with max_steps {steps}; it must be less"
            )
    if model.precision == "fp8" and model.gpus == 0:
        raise UserError(
            f"config: {place}.precision: 'fp8' needs a GPU, but gpus is 0; take "
            "another precision or set gpus"
        )


def _check_data(data: DataSettings) -> None:
    seen: dict[Path, str] = {}
    for name, entries in data.entries.items():
        for entry in entries:
            if isinstance(entry, HubData):
                _check_columns(name, entry)
                continue
            _check_file(f"config: data.{name}: {entry!r}", entry)
            place = Path(entry).resolve()
            # Labelled pairs may be unlabelled ones too: their labels are left unused.
            if place in seen and name != "unlabelled":
                raise UserError(
                    f"config: data.{name}: {entry!r} is in data.{seen[place]} already; "
                    "name each file once"
                )
            seen[place] = name


def _check_file(key: str, entry: str) -> None:
    if entry.startswith(SIMULATED_FOLDER):
        if entry not in SIMULATED_FILES:
            raise UserError(
                f"{key} is not allowed; of the simulator it must be one of "
                f"{', '.join(SIMULATED_FILES)}"
            )
        return
    check_path(key.rpartition(": ")[0], entry)
    path = Path(entry)
    if not path.exists():
        raise UserError(f"{key} does not exist (seen from {Path.cwd()})")
    if not path.is_file():
        raise UserError(f"{key} is no file; name the files inside, or a hub data set")
    if not entry.lower().endswith(KINDS):
        raise UserError(
            f"{key} is not allowed; its name must end in one of {', '.join(KINDS)}"
        )
    if path.stat().st_size == 0 or _most_rows(path) == 0:
        raise UserError(f"{key} has no data rows; name a file that has some")


def _check_columns(name: str, entry: HubData) -> None:
    unknown = [key for key in entry.columns if key not in COLUMNS]
    if unknown:
        raise UserError(
            f"config: data.{name}: columns: {unknown[0]!r} is no column of the Kaggle "
            f"schema; it must be one of {', '.join(COLUMNS)}"
        )


def _check_rows(
    data: DataSettings, simulation: SimulationSettings, n_folds: int
) -> None:
    """Refuse more folds than rows, where the train files are small enough to count."""
    n_rows = 0
    for entry in data.train:
        if isinstance(entry, HubData):
            return
        if entry.startswith(SIMULATED_FOLDER):
            n_rows += getattr(simulation, f"n_{Path(entry).stem}")
            continue
        most = _most_rows(Path(entry))
        if most is None:
            return
        n_rows += most
    needed = n_folds + HELD_OUT
    if n_rows < needed:
        raise UserError(
            f"config: folds.n: {n_folds} folds with select and test need {needed} "
            f"different prompts, data.train has at most {n_rows}; lower folds.n or add "
            "data"
        )


def _most_rows(path: Path) -> int | None:
    """Bound a small text file's rows by its lines; None for any other file."""
    is_csv = path.name.lower().endswith(".csv")
    if not (is_csv or path.name.lower().endswith(".jsonl")):
        return None
    if path.stat().st_size > SMALL_FILE:
        return None
    lines = path.read_bytes().replace(b"\r", b"\n").split(b"\n")
    n_lines = sum(1 for line in lines if line.strip())
    return max(n_lines - 1, 0) if is_csv else n_lines


def _check_text(text: TextSettings) -> None:
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(text.template)]
        turn = [name for _, name, _, _ in string.Formatter().parse(text.turn)]
    except ValueError as error:
        raise UserError(f"config: text: unbalanced braces ({error})") from error
    if [name for name in fields if name is not None] != TEMPLATE_FIELDS:
        raise UserError(
            f"config: text.template: {text.template!r} must hold {{prompt}}, "
            "{response_a} and {response_b} once each, in this order"
        )
    if not text.template.split("{response_b}")[1].strip():
        raise UserError(
            f"config: text.template: {text.template!r} must end in a short cue "
            "after {response_b}, the place where the verdict is read"
        )
    if [name for name in turn if name is not None] != ["n"]:
        raise UserError(f"config: text.turn: {text.turn!r} must hold {{n}} once")


def _check_folds(folds: FoldSettings) -> None:
    select, test = folds.select_fraction, folds.test_fraction
    if select + test > 0.6:
        raise UserError(
            f"config: folds: select_fraction {select} and test_fraction {test} leave "
            "too little to train on; keep their sum <= 0.6"
        )
    part, n_parts = folds.test_part, round(1 / test)
    if part is not None and abs(n_parts * test - 1) > 0.01:
        raise UserError(
            f"config: folds.test_fraction: {test} does not cut the rows into parts for "
            f"test_part; it must be 1/m, such as {1 / n_parts:g}"
        )
    if part is not None and part >= n_parts:
        raise UserError(
            f"config: folds.test_part: {part} is not allowed; a test_fraction of "
            f"{test} has parts 0 to {n_parts - 1}"
        )


def _check_fold_weights(settings: Settings) -> None:
    weights, n_folds = settings.ensemble.fold_weights, settings.folds.n
    if not isinstance(weights, str) and len(weights) != n_folds:
        raise UserError(
            f"config: ensemble.fold_weights: {list(weights)} must be one weight for "
            f"each of the {n_folds} folds"
        )
    if weights == "advantage" and (problem := _baseline_problem(settings)):
        baseline = settings.ensemble.advantage.baseline
        raise UserError(f"config: ensemble.advantage.baseline: {baseline!r} {problem}")


def _baseline_problem(settings: Settings) -> str | None:
    """Say why the baseline of the folds' rewards does not go with other settings."""
    baseline = settings.ensemble.advantage.baseline
    distillation, mean = settings.distillation, settings.distillation.ema
    if baseline == "trees" and not distillation.keeps_dev_clean(settings.teachers):
        return (
            "rewards a fold on its dev rows, which teachers that its student learns "
            "from were trained on (labels out_of_fold, sample_weights); use "
            "'ema' or 'none'"
        )
    if baseline == "ema" and (not mean.decay or mean.use):
        return (
            "needs the running mean of each student beside its last weights; set "
            "distillation.ema.decay, such as 0.99, and use: false"
        )
    return None
