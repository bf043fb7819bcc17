"""Validation of the merged configuration: one line per mistake, before any job.

Imported by the Snakefile, so it stays light: jsonschema and the standard library.
"""

import copy
import difflib
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from prefdistill.job import UserError

SIMULATED_FOLDER = "results/simulated/"
# These say how a job runs, not what comes out: a change reruns nothing.
RUN_TIME_KEYS = frozenset(
    {"token_budget", "recompute", "checkpoint_steps", "progress_batches"}
)
TEMPLATE_FIELDS = ["prompt", "response_a", "response_b"]
KEYS_OF_SOURCE = {
    "tiny": ("architecture",),
    "package": ("package", "version"),
    "hub": ("repo",),
    "path": ("path",),
}


def result_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that decide a result, without those of how a job runs; keys sorted."""
    return {key: settings[key] for key in sorted(settings) if key not in RUN_TIME_KEYS}


def validate_config(config: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Check a configuration and fill in the schema's defaults.

    Args:
        config: The merged configuration, as YAML gave it.
        schema: The JSON schema of ``workflow/schemas/config.schema.yaml``.

    Returns:
        A new dictionary with every key of the schema.

    Raises:
        UserError: One line with key path, value, and what is allowed.
    """
    config = drop_nulls(config)
    errors = list(Draft202012Validator(schema).iter_errors(config))
    if errors:
        raise UserError(describe_error(min(errors, key=_depth_first)))
    filled = fill_defaults(config, schema, schema)
    filled["data"]["test"] = filled["data"]["test"] or None  # an empty list is none
    if filled["distillation"]["teacher_gate"] is False:  # YAML reads a bare off so
        filled["distillation"]["teacher_gate"] = "off"
    check_consistency(filled)
    return filled


def drop_nulls(value: Any) -> Any:
    """Remove null keys: in an overlay, null takes a key of the base away."""
    if isinstance(value, dict):
        return {k: drop_nulls(each) for k, each in value.items() if each is not None}
    return value


def _depth_first(error: ValidationError) -> tuple[int, str]:
    """Unknown keys first, as they are the usual cause of the other errors."""
    return (error.validator != "additionalProperties", error.json_path)


def fill_defaults(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """Return ``value`` with the defaults of its (sub)schema filled in, recursively."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]] | {
            key: schema[key] for key in schema if key != "$ref"
        }
    if isinstance(value, dict):
        filled = dict(value)
        for key, sub in schema.get("properties", {}).items():
            target = (
                root["$defs"][sub["$ref"].rsplit("/", 1)[-1]] if "$ref" in sub else sub
            )
            if key not in filled and "default" in target:
                filled[key] = copy.deepcopy(target["default"])
            if key in filled:
                filled[key] = fill_defaults(filled[key], sub, root)
        extra = schema.get("additionalProperties")
        if isinstance(extra, dict):
            for key in filled.keys() - schema.get("properties", {}).keys():
                filled[key] = fill_defaults(filled[key], extra, root)
        # In the schema's order, as a job's settings are compared as text.
        known = [key for key in schema.get("properties", {}) if key in filled]
        return {key: filled[key] for key in dict.fromkeys([*known, *filled])}
    if isinstance(value, list) and "items" in schema:
        return [fill_defaults(item, schema["items"], root) for item in value]
    return value


def describe_error(error: ValidationError) -> str:
    """One line for a schema error: key path, value, what is allowed."""
    while error.context:
        branches = [sub for sub in error.context if sub.validator != "type"]
        error = max(branches or error.context, key=lambda sub: len(sub.absolute_path))
    path = ".".join(str(part) for part in error.absolute_path)
    place = path or "the top level"
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = sorted(error.instance.keys() - known.keys(), key=str)[0]
        near = difflib.get_close_matches(str(unknown), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return f"config: unknown key {unknown!r} at {place}; {hint}"
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return f"config: {place}: the key {missing[0]!r} is missing"
    allowed = {
        "enum": lambda v: f"one of {', '.join(map(str, v))}",
        "const": lambda v: f"{v!r}",
        "type": lambda v: f"of type {v if isinstance(v, str) else ' or '.join(v)}",
        "minimum": lambda v: f"at least {v}",
        "maximum": lambda v: f"at most {v}",
        "exclusiveMinimum": lambda v: f"greater than {v}",
        "exclusiveMaximum": lambda v: f"less than {v}",
        "minItems": lambda v: f"a list of at least {v}",
        "maxItems": lambda v: f"a list of at most {v}",
        "uniqueItems": lambda v: "a list without repetition",
        "minProperties": lambda v: f"a mapping with at least {v} entry",
        "pattern": lambda v: f"a name that matches {v}",
        "not": lambda v: "another name; this one is reserved",
    }.get(error.validator)
    rule = allowed(error.validator_value) if allowed else error.message
    return f"config: {place}: {error.instance!r} is not allowed; it must be {rule}"


def check_consistency(config: dict[str, Any]) -> None:
    """Refuse settings that are valid one by one and contradict each other.

    Raises:
        UserError: One line with key path, value, and what is allowed.
    """
    _check_bases(config)
    _check_data(config)
    _check_text(config["text"])
    _check_folds(config)
    _check_distillation(config)
    _check_predict(config)


def _check_predict(config: dict[str, Any]) -> None:
    predict = config["predict"]
    for kind in ("empty", "identical"):
        prior = predict["known_priors"][kind]
        if abs(sum(prior) - 1) > 1e-6 or (kind == "identical" and prior[0] != prior[1]):
            raise UserError(
                f"config: predict.known_priors.{kind}: {prior} is not allowed; it must "
                "sum to 1, with A and B alike where the answers are identical"
            )
    model, share = predict["model"], predict["second_view_share"]
    if share < 1 and (model == "adapters" or len(predict["views"]) < 2):
        raise UserError(
            f"config: predict.second_view_share: {share} needs two predict.views and "
            "one whole model (merged, gptq8, gptq4) as predict.model; it must be 1"
        )
    if (
        model.startswith("gptq")
        and int(model[4:]) not in config["quantisation"]["bits"]
    ):
        raise UserError(
            f"config: predict.model: {model!r} needs {model[4:]} in quantisation.bits, "
            f"which is {config['quantisation']['bits']}"
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


def _check_bases(config: dict[str, Any]) -> None:
    for name, base in config["base_models"].items():
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
        if (
            base["source"] == "path"
            and not (Path(base["path"]) / "config.json").exists()
        ):
            raise UserError(
                f"config: base_models.{name}.path: {base['path']!r} has no "
                "config.json; name a folder with a saved model"
            )
    models = {f"teachers.{name}": each for name, each in config["teachers"].items()}
    for place, model in {**models, "student": config["student"]}.items():
        if model["base"] not in config["base_models"]:
            raise UserError(
                f"config: {place}.base: {model['base']!r} is not in base_models "
                f"({', '.join(config['base_models'])})"
            )
        rows = model["inference"]["rows"]
        if rows and rows[0] >= rows[1]:
            raise UserError(
                f"config: {place}.inference.rows: {rows} is empty; it must be "
                "[start, end) with start < end"
            )
    student = config["base_models"][config["student"]["base"]]
    group = config["quantisation"]["group_size"]
    if student["source"] == "tiny" and student["hidden_size"] % group:
        raise UserError(
            f"config: quantisation.group_size: {group} does not divide the student's "
            f"hidden size {student['hidden_size']}"
        )


def _check_data(config: dict[str, Any]) -> None:
    data = config["data"]
    entries = {name: data[name] for name in ("train", "extra", "ultra", "unlabelled")}
    entries["test"] = [data["test"]] if data["test"] else []
    for name, paths in entries.items():
        for path in paths:
            if isinstance(path, dict) or str(path).startswith(SIMULATED_FOLDER):
                continue
            if not Path(path).exists():
                raise UserError(
                    f"config: data.{name}: the file {path!r} does not exist (seen from "
                    f"{Path.cwd()})"
                )


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


def baseline_problem(config: dict[str, Any]) -> str | None:
    """Why the baseline of the folds' rewards cannot be used with other settings."""
    baseline = config["ensemble"]["advantage"]["baseline"]
    distillation = config["distillation"]
    mean = distillation["ema"]
    if baseline == "trees" and not clean_dev(distillation, list(config["teachers"])):
        return (
            "rewards a fold on its dev rows, which teachers that its student learns "
            "from were trained on (labels out_of_fold, sample_weights, soften); use "
            "'ema' or 'none'"
        )
    if baseline == "ema" and (not mean["decay"] or mean["use"]):
        return (
            "needs the running mean of each student beside its last weights; set "
            "distillation.ema.decay, such as 0.99, and use: false"
        )
    return None


def judges_rows(distillation: Mapping[str, Any]) -> bool:
    """Whether out-of-fold teachers weigh or soften the rows."""
    weighs = distillation["sample_weights"]["beta"] != 0
    return weighs or distillation["soften"]["share"] > 0


def clean_dev(distillation: Mapping[str, Any], teachers: Sequence[str]) -> bool:
    """Whether no teacher that a student learns from was trained on its dev rows."""
    out_of_fold = distillation["labels"] == "out_of_fold"
    return not (teachers and (out_of_fold or judges_rows(distillation)))


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
