"""Settings that are valid one by one and contradict each other, or the disk.

Imported by the Snakefile, so it stays light: the standard library.
"""

import string
from pathlib import Path
from typing import Any

from prefdistill.errors import UserError
from prefdistill.pipeline.leaks import baseline_problem
from prefdistill.pipeline.local_models import check_local_model, check_shapes
from prefdistill.pipeline.sizes import SIMULATED_FOLDER

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
SMALL_FILE = 1 << 20  # bytes: so much is read to count rows, in milliseconds
HELD_OUT = 2  # select and test, beside the folds
TEMPLATE_FIELDS = ["prompt", "response_a", "response_b"]
KEYS_OF_SOURCE = {
    "tiny": ("architecture",),
    "package": ("package", "version"),
    "hub": ("repo",),
    "path": ("path",),
}


def check_consistency(config: dict[str, Any]) -> None:
    """Refuse settings that are valid one by one and contradict each other.

    Args:
        config: Validated against the schema, with all defaults.

    Raises:
        UserError: One line with key path, value, and what is allowed.
    """
    _check_bases(config["base_models"], config["student"]["base"])
    models = {f"teachers.{name}": each for name, each in config["teachers"].items()}
    for place, model in {**models, "student": config["student"]}.items():
        _check_model(place, model, list(config["base_models"]))
    check_shapes(config)
    _check_data(config)
    _check_text(config["text"])
    _check_folds(config)
    _check_fold_lists(config)
    _check_distillation(config)
    _check_predict(config)
    scratch = Path(config["scratch"])
    if scratch.exists() and not scratch.is_dir():
        raise UserError(
            f"config: scratch: {config['scratch']!r} is a file; it must be a folder"
        )
    if scratch.resolve().is_relative_to(Path("results").resolve()):
        raise UserError(
            f"config: scratch: {config['scratch']!r} lies in results; it must be a "
            "folder that may be deleted"
        )


def _check_predict(config: dict[str, Any]) -> None:
    predict, bits = config["predict"], config["quantisation"]["bits"]
    model = predict["model"]
    if model.startswith("gptq") and int(model[4:]) not in bits:
        raise UserError(
            f"config: predict.model: {model!r} needs {model[4:]} in quantisation.bits, "
            f"which is {bits}"
        )


def _check_distillation(config: dict[str, Any]) -> None:
    distillation = config["distillation"]
    if sum(distillation["weights"].values()) == 0:
        raise UserError("config: distillation.weights are all 0; give one a weight")
    unlabelled = config["data"]["unlabelled"] or config["data"]["test"]
    if distillation["pseudo_labels"]["weight"] and not unlabelled:
        raise UserError(
            "config: distillation.pseudo_labels.weight: there are no unlabelled pairs; "
            "set data.unlabelled, or a weight of 0"
        )
    if distillation["ema"]["use"] and not distillation["ema"]["decay"]:
        raise UserError(
            "config: distillation.ema.use: there is no mean to use; set "
            "distillation.ema.decay, such as 0.99"
        )


def _check_bases(bases: dict[str, Any], merged: str) -> None:
    """Check the bases, of which ``merged`` is the one that adapters are merged into."""
    owners: dict[Path, str] = {}
    for name, base in bases.items():
        for key in KEYS_OF_SOURCE[base["source"]]:
            if key not in base:
                raise UserError(
                    f"config: base_models.{name}: source {base['source']!r} needs "
                    f"the key {key!r}"
                )
        if base["source"] == "tiny" and base["hidden_size"] % (2 * base["n_heads"]):
            raise UserError(
                f"config: base_models.{name}.hidden_size: {base['hidden_size']} must "
                f"be a multiple of twice n_heads ({base['n_heads']})"
            )
        if base["source"] == "path":
            check_local_model(name, base["path"], is_merged=name == merged)
            owner = owners.setdefault(Path(base["path"]).resolve(), name)
            if owner != name:
                raise UserError(
                    f"config: base_models.{name}.path: {base['path']!r} is the folder "
                    f"of base_models.{owner} too; name one base in both places"
                )


def _check_model(place: str, model: dict[str, Any], bases: list[str]) -> None:
    """Check a teacher's or the student's settings against each other."""
    if model["base"] not in bases:
        raise UserError(
            f"config: {place}.base: {model['base']!r} is not in base_models "
            f"({', '.join(bases)})"
        )
    rows = model["inference"]["rows"]
    if rows and rows[0] >= rows[1]:
        raise UserError(
            f"config: {place}.inference.rows: {rows} is empty; it must be "
            "[start, end) with start < end"
        )
    if rows and model["inference"]["n_rows"]:
        raise UserError(
            f"config: {place}.inference.n_rows: {model['inference']['n_rows']} and "
            f"rows {rows} exclude each other; leave one out"
        )
    for section in ("training", "post_pretrain"):
        warm_up, steps = (model[section][k] for k in ("warmup_steps", "max_steps"))
        if warm_up and steps and warm_up >= steps:
            raise UserError(
                f"config: {place}.{section}.warmup_steps: {warm_up} is not allowed "
                f"with max_steps {steps}; it must be less"
            )
    if model["precision"] == "fp8" and model["gpus"] == 0:
        raise UserError(
            f"config: {place}.precision: 'fp8' needs a GPU, but gpus is 0; take "
            "another precision or set gpus"
        )


def _check_data(config: dict[str, Any]) -> None:
    data = config["data"]
    seen: dict[Path, str] = {}
    entries = {name: data[name] for name in ("train", "extra", "ultra", "unlabelled")}
    entries["test"] = [data["test"]] if data["test"] else []
    for name, paths in entries.items():
        for entry in paths:
            if isinstance(entry, dict):
                _check_columns(name, entry)
                continue
            _check_file(f"config: data.{name}: {entry!r}", entry)
            place = Path(entry).resolve()
            if place in seen and name != "unlabelled":  # labels may be left unused
                raise UserError(
                    f"config: data.{name}: {entry!r} is in data.{seen[place]} already; "
                    "name each file once"
                )
            seen[place] = name
    _check_rows(config)


def _check_file(key: str, entry: str) -> None:
    if entry.startswith(SIMULATED_FOLDER):
        if entry not in SIMULATED_FILES:
            raise UserError(
                f"{key} is not allowed; of the simulator it must be one of "
                f"{', '.join(SIMULATED_FILES)}"
            )
        return
    path = Path(entry)
    if not path.exists():
        raise UserError(f"{key} does not exist (seen from {Path.cwd()})")
    if not path.is_file():
        raise UserError(f"{key} is no file; name the files inside, or a hub data set")
    if not entry.lower().endswith(KINDS):
        raise UserError(
            f"{key} is not allowed; its name must end in one of {', '.join(KINDS)}"
        )


def _check_columns(name: str, entry: dict[str, Any]) -> None:
    unknown = [key for key in entry.get("columns", {}) if key not in COLUMNS]
    if unknown:
        raise UserError(
            f"config: data.{name}: columns: {unknown[0]!r} is no column of the Kaggle "
            f"schema; it must be one of {', '.join(COLUMNS)}"
        )


def _check_rows(config: dict[str, Any]) -> None:
    """Refuse more folds than rows, where the train files are small enough to count."""
    n_rows = 0
    for entry in config["data"]["train"]:
        if isinstance(entry, str) and entry.startswith(SIMULATED_FOLDER):
            n_rows += config["simulation"].get(f"n_{Path(entry).stem}", 0)
        else:
            most = None if isinstance(entry, dict) else _most_rows(Path(entry))
            if most is None:
                return
            n_rows += most
    needed = config["folds"]["n"] + HELD_OUT
    if n_rows < needed:
        raise UserError(
            f"config: folds.n: {config['folds']['n']} folds with select and test need "
            f"{needed} different prompts, data.train has at most {n_rows}; lower "
            "folds.n or add data"
        )


def _most_rows(path: Path) -> int | None:
    """An upper bound of a small text file's rows: its lines; None for another file."""
    is_csv = path.name.lower().endswith(".csv")
    if not (is_csv or path.name.lower().endswith(".jsonl")):
        return None
    if path.stat().st_size > SMALL_FILE:
        return None
    lines = path.read_bytes().replace(b"\r", b"\n").split(b"\n")
    n_lines = sum(1 for line in lines if line)
    return max(n_lines - 1, 0) if is_csv else n_lines


def _check_text(text: dict[str, Any]) -> None:
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(text["template"])]
        turn = [name for _, name, _, _ in string.Formatter().parse(text["turn"])]
    except ValueError as error:
        raise UserError(f"config: text: unbalanced braces ({error})") from error
    if [name for name in fields if name is not None] != TEMPLATE_FIELDS:
        raise UserError(
            f"config: text.template: {text['template']!r} must hold {{prompt}}, "
            "{response_a} and {response_b} once each, in this order"
        )
    if not text["template"].split("{response_b}")[1].strip():
        raise UserError(
            f"config: text.template: {text['template']!r} must end in a short cue "
            "after {response_b}, the place where the verdict is read"
        )
    if [name for name in turn if name is not None] != ["n"]:
        raise UserError(f"config: text.turn: {text['turn']!r} must hold {{n}} once")


def _check_folds(config: dict[str, Any]) -> None:
    folds = config["folds"]
    if folds["select_fraction"] + folds["test_fraction"] > 0.6:
        raise UserError(
            f"config: folds: select_fraction {folds['select_fraction']} and "
            f"test_fraction {folds['test_fraction']} leave too little to train on; "
            "keep their sum <= 0.6"
        )
    part, n_parts = folds["test_part"], round(1 / folds["test_fraction"])
    if part is not None and abs(n_parts * folds["test_fraction"] - 1) > 0.01:
        raise UserError(
            f"config: folds.test_fraction: {folds['test_fraction']} does not cut the "
            f"rows into parts for test_part; it must be 1/m, such as {1 / n_parts:g}"
        )
    if part is not None and part >= n_parts:
        raise UserError(
            f"config: folds.test_part: {part} is not allowed; a test_fraction of "
            f"{folds['test_fraction']} has parts 0 to {n_parts - 1}"
        )


def _check_fold_lists(config: dict[str, Any]) -> None:
    folds = config["folds"]
    weights = config["ensemble"]["fold_weights"]
    if isinstance(weights, list) and len(weights) != folds["n"]:
        raise UserError(
            f"config: ensemble.fold_weights: {weights} must be one weight for each of "
            f"the {folds['n']} folds"
        )
    if weights == "advantage" and (problem := baseline_problem(config)):
        baseline = config["ensemble"]["advantage"]["baseline"]
        raise UserError(f"config: ensemble.advantage.baseline: {baseline!r} {problem}")
    named = config["predict"]["folds"]
    if isinstance(named, list) and max(named) >= folds["n"]:
        raise UserError(
            f"config: predict.folds: {named} names a fold beyond {folds['n'] - 1}"
        )
