"""Call a script's ``main`` with the values that its rule names, by name and typed.

A rule and its script share only names, so no script unpacks the ``snakemake`` object.
``tests/unit/running/test_binding.py`` compares every script with its rules.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prefdistill.settings import RUN_TIME_KEYS, read


class BindingError(TypeError):
    """A parameter of a script that its rule does not name, names twice or cannot fill.

    The mistake is in the workflow's code. The user cannot fix it.
    """


def bind(
    main: Callable[..., Any], job: Any, values: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Choose and convert a value for each parameter of a script's ``main``.

    A parameter takes the value of the input, output or param of its name. If there is
    none, it takes the wildcard of its name, then the entry of ``values``, then one of
    these:

    ========== =======================================================================
    scratch    Folder that only this job uses, to resume from after an interruption
    log        The job's log file
    config     The whole configuration (prefer params: a change of it reruns nothing)
    inputs     All named inputs, as a dataclass of paths or a ``dict[str, Path]``
    outputs    All named outputs, in the same form
    ========== =======================================================================

    The parameter's annotation says how to convert the value; see ``convert``. A
    parameter that nothing names, annotated with a dataclass, is a group: each of its
    fields is bound like a parameter.

    Settings of how a job runs (``settings.RUN_TIME_KEYS``) are no params, because their
    change must rerun nothing. The param ``section`` is the path in the configuration
    where a settings class finds those that its param lacks.

    Args:
        main: The function. Its parameters are annotated.
        job: The script's ``snakemake`` object.
        values: More values by parameter name, given by the script itself.

    Returns:
        The converted values by parameter name.

    Raises:
        BindingError: If a parameter has no value, several, or one of another type; it
            names script and parameter.
    """
    named = [dict(part.items()) for part in (job.input, job.output, job.params)]
    run_time = reduce(getitem, named[2].get("section", ()), job.config)
    extra = {
        "scratch": scratch_folder(job),
        "log": job.log[0],
        "config": job.config,
        "inputs": named[0],
        "outputs": named[1],
    }
    extra |= {**(values or {}), **dict(job.wildcards.items())}
    check_names(main, *named, known=extra)
    return _fill(main, extra | named[0] | named[1] | named[2], run_time)


JOB_NAMES = ("scratch", "log", "config", "inputs", "outputs")


def check_names(
    main: Callable[..., Any], *named: Iterable[str], known: Iterable[str]
) -> None:
    """Check that a rule names each parameter of ``main`` exactly once.

    Args:
        main: The function.
        *named: Names of the rule's inputs, outputs and params.
        known: Names of its wildcards, and those that every job has.

    Raises:
        BindingError: If a parameter is named twice, or nowhere and has no default; it
            names script and parameter.
    """
    for name, parameter in inspect.signature(main).parameters.items():
        count = sum(name in part for part in named)
        where = f"{_script_of(main)}: parameter {name!r} of main"
        if count > 1:
            raise BindingError(
                f"{where} is the name of {count} among the rule's input, output and "
                "params; rename one of them"
            )
        if count or name in known or parameter.default is not parameter.empty:
            continue
        annotation = typing.get_type_hints(_signed(main)).get(name)
        if not dataclasses.is_dataclass(annotation):
            raise BindingError(
                f"{where} is not named by the rule's input, output, params or "
                "wildcards; add it to the rule or take it from main"
            )
        check_names(annotation, *named, known=known)


def scratch_folder(job: Any) -> Path:
    """Return the folder below ``scratch`` that only this job uses."""
    return Path(job.config["scratch"], job.rule, "_".join(job.wildcards) or "all")


def _script_of(function: Callable[..., Any]) -> str:
    return Path(inspect.getfile(function)).name


def _signed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what carries the annotations: the function, or a class's initialiser."""
    return function.__init__ if inspect.isclass(function) else function


def _fill(
    function: Callable[..., Any],
    values: Mapping[str, Any],
    run_time: Mapping[str, Any],
) -> dict[str, Any]:
    """Convert the values of the parameters of a function or a dataclass."""
    hints = typing.get_type_hints(_signed(function))
    filled = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in values:
            if parameter.default is parameter.empty:  # a group
                group = hints[name]
                filled[name] = group(**_fill(group, values, run_time))
            continue
        try:
            filled[name] = convert(values[name], hints[name], run_time)
        except BindingError:
            raise
        except (TypeError, ValueError, KeyError) as error:
            raise BindingError(
                f"{_script_of(function)}: parameter {name!r}: {error}"
            ) from error
    return filled


def convert(
    value: Any, annotation: Any, run_time: Mapping[str, Any] = MappingProxyType({})
) -> Any:
    """Convert a rule's value to the type that an annotation names.

    Args:
        value: A path, a named list of paths, a wildcard or a param.
        annotation: ``Path``, ``int``, ``float``, ``bool``, ``str``, ``Any``, a ``list``
            or ``dict`` of these, one of these ``| None``, or a dataclass. With
            ``| None``, an empty list of files becomes None. A dataclass of settings is
            read by ``settings.read``. A dataclass whose fields are all paths is filled
            by name.
        run_time: Settings of how the job runs, for a dataclass whose value lacks them.

    Raises:
        TypeError: If the value is not of that type.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, list) and not value):
            return None
        (annotation,) = [each for each in arguments if each is not type(None)]
        return convert(value, annotation, run_time)
    if dataclasses.is_dataclass(annotation):
        return _dataclass_of(value, annotation, run_time)
    if origin is list:
        items = [value] if isinstance(value, str) else value
        return [convert(item, arguments[0]) for item in items]
    if origin is dict:
        return {key: convert(item, arguments[1]) for key, item in value.items()}
    if annotation is Path:
        return Path(_only(value))
    if annotation in (int, float) and isinstance(value, str):  # a wildcard
        return annotation(value)
    if annotation is Any:
        return value
    if annotation is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, annotation):
        raise TypeError(f"{value!r} is not of type {annotation.__name__}")
    return value


def _only(value: Any) -> Any:
    """Return the one path of an input that a rule may give as a list."""
    if isinstance(value, str | Path):
        return value
    if not isinstance(value, list) or len(value) != 1:
        raise TypeError(f"{value!r} is not one path; annotate it list[Path]")
    return value[0]


def _dataclass_of(
    value: Mapping[str, Any], kind: type, run_time: Mapping[str, Any]
) -> Any:
    """Build a dataclass of paths, or one of settings, from a rule's named values."""
    if _is_of_files(kind):
        check_names(kind, value, known=())
        return kind(**_fill(kind, value, {}))
    wanted = {field.name for field in dataclasses.fields(kind)} & RUN_TIME_KEYS
    return read(kind, {key: run_time[key] for key in wanted & run_time.keys()} | value)


def _is_of_files(kind: type) -> bool:
    """Tell whether every field of a dataclass is a path, a list of paths, or None."""
    wanted = (Path, list[Path], Path | None)
    hints = typing.get_type_hints(kind)
    return all(hint in wanted for hint in hints.values())
