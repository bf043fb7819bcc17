"""Call a script's ``main`` with what its rule names: parameters by name, typed.

A rule and its script agree on names alone. So a script has no lines that unpack the
``snakemake`` object, and ``tests/unit/test_binding.py`` compares every script with its
rules without running a job.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


class BindingError(TypeError):
    """A script's parameter that its rule does not name, names twice or cannot fill.

    It is a mistake in the workflow's code, not one of its user.
    """


def bind(
    main: Callable[..., Any], job: Any, values: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Choose and convert a value for each parameter of a script's ``main``.

    A parameter takes the rule's value of its name: of an input, an output or a param,
    else of a wildcard, else of ``values``, else one of these:

    ========== =======================================================================
    scratch    Folder of this job alone, for what an interrupted job resumes from
    log        The job's log file
    config     The whole configuration (prefer params: it starts no rerun)
    inputs     All named inputs, as a dataclass of paths or a ``dict[str, Path]``
    outputs    All named outputs, likewise
    ========== =======================================================================

    Its annotation says how to convert the value; see ``convert``.

    Args:
        main: The function. Its parameters are annotated.
        job: The script's ``snakemake`` object.
        values: What the script itself gives.

    Raises:
        BindingError: Naming script and parameter.
    """
    named = [dict(part.items()) for part in (job.input, job.output, job.params)]
    extra = {
        "scratch": scratch_folder(job),
        "log": job.log[0],
        "config": job.config,
        "inputs": named[0],
        "outputs": named[1],
    }
    extra |= {**(values or {}), **dict(job.wildcards.items())}
    check_names(main, *named, known=extra)
    return _fill(main, extra | named[0] | named[1] | named[2])


JOB_NAMES = ("scratch", "log", "config", "inputs", "outputs")


def check_names(
    main: Callable[..., Any], *named: Iterable[str], known: Iterable[str]
) -> None:
    """Check that a rule names each parameter of ``main`` exactly once.

    Args:
        main: The function.
        *named: Names of the rule's inputs, outputs and params.
        known: Names of its wildcards, and those of every job.

    Raises:
        BindingError: Naming script and parameter.
    """
    for name, parameter in inspect.signature(main).parameters.items():
        count = sum(name in part for part in named)
        where = f"{_script_of(main)}: parameter {name!r} of main"
        if count > 1:
            raise BindingError(
                f"{where} is the name of {count} among the rule's input, output and "
                "params; rename one of them"
            )
        if not count and name not in known and parameter.default is parameter.empty:
            raise BindingError(
                f"{where} is not named by the rule's input, output, params or "
                "wildcards; add it to the rule or take it from main"
            )


def scratch_folder(job: Any) -> Path:
    """Return the folder below ``scratch`` that belongs to this job alone."""
    return Path(job.config["scratch"], job.rule, "_".join(job.wildcards) or "all")


def _script_of(function: Callable[..., Any]) -> str:
    return Path(inspect.getfile(function)).name


def _fill(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the values of the parameters of a function or a dataclass."""
    hints = typing.get_type_hints(
        function.__init__ if inspect.isclass(function) else function
    )
    filled = {}
    for name in inspect.signature(function).parameters:
        if name not in values:
            continue  # it has a default
        try:
            filled[name] = convert(values[name], hints[name])
        except BindingError:
            raise
        except (TypeError, ValueError, KeyError) as error:
            raise BindingError(
                f"{_script_of(function)}: parameter {name!r}: {error}"
            ) from error
    return filled


def convert(value: Any, annotation: Any) -> Any:
    """Convert a rule's value to what an annotation says.

    Args:
        value: A path, a named list of paths, a wildcard or a param.
        annotation: ``Path``, ``int``, ``float``, ``bool``, ``str``, ``Any``, a ``list``
            or ``dict`` of such, one of these ``| None``, or a dataclass. For ``| None``
            no files at all, which a rule writes ``[]``, are None. A dataclass of
            settings is read by ``settings.read``, one whose fields are all paths is
            filled by name.

    Raises:
        TypeError: If the value is not of that kind.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, list) and not value):
            return None
        (annotation,) = [each for each in arguments if each is not type(None)]
        return convert(value, annotation)
    if dataclasses.is_dataclass(annotation):
        return _dataclass_of(value, annotation)
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
        raise TypeError(f"{value!r} is no {annotation.__name__}")
    return value


def _only(value: Any) -> Any:
    """Return the one path of an input that a rule may give as a list."""
    if isinstance(value, str | Path):
        return value
    if not isinstance(value, list) or len(value) != 1:
        raise TypeError(f"{value!r} is not one path; annotate it list[Path]")
    return value[0]


def _dataclass_of(value: Mapping[str, Any], kind: type) -> Any:
    """Build a dataclass of paths, or one of settings, from what a rule names."""
    if _is_of_files(kind):
        check_names(kind, value, known=())
        return kind(**_fill(kind, value))
    from prefdistill.settings import read

    return read(kind, value)


def _is_of_files(kind: type) -> bool:
    """Return whether every field of a dataclass is a path, some paths, or None."""
    wanted = (Path, list[Path], Path | None)
    hints = typing.get_type_hints(kind)
    return all(hint in wanted for hint in hints.values())
