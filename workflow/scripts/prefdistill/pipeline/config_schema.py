"""Validate the merged configuration: one line for a mistake, before any job.

Imported by the Snakefile, so it stays light: jsonschema and the standard library.
"""

import copy
import difflib
import math
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from prefdistill.errors import UserError
from prefdistill.pipeline.config_checks import check_config
from prefdistill.settings import Settings, read

MOST_DEPTH, MOST_VALUES = 50, 100_000
LONGEST_VALUE = 200  # characters of a value in a message

# JSON's integers include 3.0, which Python's range does not take.
Validator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: type(value) is int
    ),
)

NULLS = ("null", "~", "")

# Keys that were removed: since when, and what they gave.
GONE = {
    "distillation.average_orders": (
        "November 2026",
        "averaging both orders' teacher logits moved no loss clear of 0",
    ),
    "distillation.soften": (
        "November 2026",
        "softened verdicts gained 0.0006 nats and made dev scores unclean",
    ),
    "predict.known_priors": (
        "November 2026",
        "fixed priors of degenerate rows did not hold from one source to another",
    ),
    "predict.second_view_share": (
        "November 2026",
        "choosing uncertain rows for a second view was no better than chance",
    ),
}


def validate_config(config: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Check a configuration and fill in the schema's defaults.

    Args:
        config: The merged configuration, as YAML gave it.
        schema: The JSON schema of ``workflow/schemas/config.schema.yaml``.

    Returns:
        A new dictionary with every key of the schema.

    Raises:
        UserError: One line with key path, value, and what is allowed, or since when a
            key is gone.
    """
    check_size(config)
    config = drop_nulls(config)
    check_finite(config)
    errors = list(Validator(schema).iter_errors(config))
    if errors:
        gone = next(filter(None, map(_describe_gone, errors)), None)
        raise UserError(gone or describe_error(min(errors, key=_depth_first)))
    filled = fill_defaults(config, schema, schema)
    filled["data"]["test"] = filled["data"]["test"] or None  # an empty list is none
    if filled["distillation"]["teacher_gate"] is False:  # YAML reads a bare off so
        filled["distillation"]["teacher_gate"] = "off"
    check_config(read(Settings, filled))
    return filled


def read_typed(config: Any, given: Any, schema: Any, root: dict[str, Any]) -> Any:
    """Read the texts that came by ``--config`` by the schema's types.

    Snakemake reads ``--config 'folds={n: 3}'`` as a mapping of texts.

    Args:
        config: The merged configuration, or the part of it for ``schema``.
        given: What the command line gave for it.
        schema: Its (sub)schema; None where the schema knows no such key.
        root: The whole schema.

    Returns:
        The configuration with numbers, booleans and nulls where texts stood for them.
    """
    if isinstance(config, dict) and isinstance(given, Mapping):
        known = _parts_of(schema, "properties", root)
        extra = next(iter(_parts_of(schema, "additionalProperties", root)), None)
        typed = {}
        for key, value in config.items():
            inner = next((part[key] for part in known if key in part), extra)
            inside = key in given
            typed[key] = read_typed(value, given[key], inner, root) if inside else value
        return typed
    if isinstance(config, list) and isinstance(given, list | tuple):
        item = next(iter(_parts_of(schema, "items", root)), None)
        return [read_typed(value, value, item, root) for value in config]
    if not isinstance(config, str) or schema is None:
        return config
    types = {
        name
        for part in _parts_of(schema, "type", root)
        for name in ([part] if isinstance(part, str) else part)
    }
    if "null" in types and config.lower() in NULLS:
        return None
    choices = [each for part in _parts_of(schema, "enum", root) for each in part]
    for each in choices:
        if config.lower() == str(each).lower():  # 4 or False, where '4' or 'false' came
            return each
    return config if "string" in types or not types else _parsed(config)


def _parts_of(schema: Any, keyword: str, root: dict[str, Any]) -> list[Any]:
    """List the values of a keyword in a schema and its references and choices."""
    if not isinstance(schema, dict):
        return []
    found = [schema[keyword]] if keyword in schema else []
    if "$ref" in schema:
        named = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
        found += _parts_of(named, keyword, root)
    for each in [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
        found += _parts_of(each, keyword, root)
    return found


def _parsed(text: str) -> Any:
    """Read a number or boolean; what is neither stays text."""
    if _is_number(text):
        number = float(text)
        return int(text) if text.strip("+-").isdigit() else number
    return {"true": True, "false": False}.get(text.lower(), text)


def check_size(value: Any) -> None:
    """Refuse a configuration that nests or repeats itself without bound.

    Files are bounded when they are read. This is for values of the command line.

    Raises:
        UserError: If it is too deep or too large.
    """
    waiting, n_values = [(value, 0)], 0
    while waiting:
        part, depth = waiting.pop()
        n_values += 1
        if depth > MOST_DEPTH or n_values > MOST_VALUES:
            raise UserError(
                f"config: values nest more than {MOST_DEPTH} deep or are more than "
                f"{MOST_VALUES}; write out what an alias repeats"
            )
        entries = part.values() if isinstance(part, dict) else part
        if isinstance(part, dict | list):
            waiting += [(each, depth + 1) for each in entries]


def drop_nulls(value: Any) -> Any:
    """Remove keys with null: in an overlay, null removes a key of the base."""
    if isinstance(value, dict):
        return {k: drop_nulls(each) for k, each in value.items() if each is not None}
    return value


def check_finite(value: Any, place: str = "") -> None:
    """Refuse the numbers .nan and .inf of YAML, which pass every bound of the schema.

    Raises:
        UserError: One line with key path, value, and what is allowed.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(
            f"config: {place}: {value} is not allowed; it must be a finite number"
        )
    entries = value.items() if isinstance(value, dict) else ()
    for key, each in enumerate(value) if isinstance(value, list) else entries:
        check_finite(each, f"{place}.{key}" if place else str(key))


def _depth_first(error: ValidationError) -> tuple[int, str]:
    """Order unknown keys first: they are the usual cause of the other errors."""
    return (error.validator != "additionalProperties", error.json_path)


def _describe_gone(error: ValidationError) -> str | None:
    """Say since when an unknown key is gone; None if the error is another one."""
    if error.validator != "additionalProperties":
        return None
    known = error.schema.get("properties", {})
    for key in sorted(error.instance.keys() - known.keys(), key=str):
        path = ".".join(map(str, [*error.absolute_path, key]))
        if path in GONE:
            since, found = GONE[path]
            return f"config: {path}: gone since {since} ({found}); remove the key"
    return None


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
    """Describe a schema error in one line: key path, value, what is allowed."""
    while error.context:
        branches = [sub for sub in error.context if sub.validator != "type"]
        error = max(branches or error.context, key=lambda sub: len(sub.absolute_path))
    path = ".".join(str(part) for part in error.absolute_path)
    place = path or "the top level"
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = sorted(error.instance.keys() - known.keys(), key=str)[0]
        near = difflib.get_close_matches(
            str(unknown)[:LONGEST_VALUE], known, n=1, cutoff=0.5
        )
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return f"config: unknown key {unknown!r} at {place}; {hint}"
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return f"config: {place}: the key {missing[0]!r} is missing"
    allowed = {
        "enum": lambda v: f"one of {', '.join(str(each) for each in v if each)}",
        "const": lambda v: f"{v!r}",
        "type": lambda v: f"of type {v if isinstance(v, str) else ' or '.join(v)}",
        "minimum": lambda v: f"at least {v}",
        "maximum": lambda v: f"at most {v}",
        "exclusiveMinimum": lambda v: f"greater than {v}",
        "exclusiveMaximum": lambda v: f"less than {v}",
        "minLength": lambda v: "a text that is not empty",
        "minItems": lambda v: f"a list of at least {v}",
        "maxItems": lambda v: f"a list of at most {v}",
        "uniqueItems": lambda v: "a list without repetition",
        "minProperties": lambda v: f"a mapping with at least {v} entry",
        "maxLength": lambda v: f"a text of at most {v} characters",
        "pattern": _describe_pattern,
        "not": lambda v: "another name; this one is reserved",
    }.get(error.validator)
    rule = allowed(error.validator_value) if allowed else error.message
    if error.validator == "type" and _is_number(error.instance):
        number = float(error.instance)
        is_whole = number.is_integer() and "integer" in error.validator_value
        rule += (
            f" (YAML reads this as text; write {int(number) if is_whole else number})"
        )
    value = repr(error.instance)
    if len(value) > LONGEST_VALUE:
        value = f"{value[:LONGEST_VALUE]}..."
    return f"config: {place}: {value} is not allowed; it must be {rule}"


def _describe_pattern(pattern: str) -> str:
    """Say what a pattern of names allows; all are first[A-Za-z0-9 and signs]*."""
    first = "a letter or digit" if pattern.startswith("^[A-Za-z0-9]") else "a letter"
    signs = pattern.partition("*")[0].rpartition("0-9")[2].rstrip("]")
    several = "any of " if len(signs) > 1 else ""
    return f"{first}, then letters, digits and {several}{signs}"


def _is_number(value: Any) -> bool:
    """Tell whether a text is a number that YAML 1.1 reads as text, such as 1e-4."""
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False
