"""Hash the code that a rule runs, function by function.

Snakemake tracks a script by its modification time and ignores the modules that it
imports. A digest among a rule's params makes both part of a job's identity instead. So
an edited loss reruns the training that uses it. A comment, a touch, a fresh clone or an
edit of another function in the same file reruns nothing.

A job hashes its code too, when it starts and when it ends (``running.records``).

Imported by the Snakefile, so it stays light.
"""

import ast
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from prefdistill.storage.whole_files import write_text

SCRIPTS = Path(__file__).resolve().parents[2]
PACKAGE = "prefdistill"
# Modules that decide how a job runs, not what comes out: an edit reruns nothing.
RUN_TIME_MODULES = frozenset(
    {
        "prefdistill.errors",
        "prefdistill.running.binding",
        "prefdistill.running.code_digests",
        "prefdistill.running.job",
        "prefdistill.running.lock",
        "prefdistill.running.logs",
        "prefdistill.running.records",
        "prefdistill.running.rule_lookup",
        "prefdistill.running.slurm",
        "prefdistill.running.stopping",
        "prefdistill.running.terminal",
        "prefdistill.running.ties",
        "prefdistill.running.workers",
        "prefdistill.storage.checkpoints",
        "prefdistill.storage.digests",
        "prefdistill.storage.hosts",
    }
)

# The key of the statements that bind no single name, such as an `if` or a call.
_OTHERS = ""
# Fields of syntax nodes that do not change what the code does.
_SILENT_FIELDS = frozenset({"ctx", "kind", "type_comment"})


@dataclass(frozen=True)
class _Unit:
    """Hold a statement: its syntax as text, its names, its (module, name) imports."""

    text: str
    names: frozenset[str]
    imports: tuple[tuple[str, str], ...]


def code_digest(script: str, scripts: Path = SCRIPTS) -> str:
    """Hash a script and every definition of the package that it can reach.

    The whole script counts. In a module of the package, these count:

    - the definitions (functions, classes, assignments, imports) that are reached by
      name from what is imported of the module, at any depth;
    - the statements that define nothing, because they run on import.

    A name counts as a use of a definition even where a local variable hides it. So the
    digest may change without need, but always changes with a definition that can run.
    Comments, docstrings, bare strings, layout and ``RUN_TIME_MODULES`` do not count.

    Every job reads the Snakefile, and reading syntax trees takes longer than all else
    that the Snakefile does. So digests are kept in ``__pycache__``, under the hash of
    the bytes of all files. The next process sees an edit.

    Args:
        script: Name of a file in ``scripts``, such as ``"train_teacher.py"``.
        scripts: Folder of the scripts and of the package beside them.

    Returns:
        The first 12 hex digits of a SHA-256, the same on every machine.

    Raises:
        FileNotFoundError: If the script does not exist.
        ValueError: If an import cannot be followed: a star, a relative import,
            ``import prefdistill...``, another script, or a name that is not there.
    """
    scripts = Path(scripts)
    digests, save = _kept_digests(scripts)
    if script not in digests:
        digests[script] = _digest(scripts / script, scripts)
        save()
    return digests[script]


def forget_code() -> None:
    """Have the next digest read the files again, as they are then."""
    for each in (_kept_digests, _exists, _statements, _unit):
        each.cache_clear()


@cache
def _kept_digests(scripts: Path) -> tuple[dict[str, str], Callable[[], None]]:
    """Read the digests of exactly these files; return a function that saves more."""
    files = sorted([*scripts.glob("*.py"), *(scripts / PACKAGE).rglob("*.py")])
    content = hashlib.sha256(repr(sys.version_info[:2]).encode())
    for path in files:
        data = path.read_bytes()
        content.update(f"{path.relative_to(scripts)} {len(data)} ".encode() + data)
    key = content.hexdigest()
    store = scripts / PACKAGE / "__pycache__" / "code_digests.json"
    try:
        kept = json.loads(store.read_text(encoding="utf-8"))
        digests = dict(kept["digests"]) if kept["key"] == key else {}
    except (OSError, ValueError, KeyError, TypeError):
        digests = {}

    def save() -> None:
        with suppress(OSError):  # a source tree that cannot be written only costs time
            write_text(store, json.dumps({"key": key, "digests": digests}))

    return digests, save


def _digest(main: Path, scripts: Path) -> str:
    """Hash the statements of ``main`` and all that they reach."""
    todo = [(main, name) for name in _statements(main)]
    reached: set[tuple[Path, str]] = set()
    parts = []
    while todo:
        path, name = todo.pop()
        if (path, name) in reached:
            continue
        reached.add((path, name))
        statements = _statements(path)
        where = path.relative_to(scripts).as_posix()
        for position, statement in enumerate(statements[name]):
            unit = _unit(statement, path)
            parts.append(f"{where} {name} {position} {unit.text}")
            todo += [(path, used) for used in unit.names & statements.keys()]
            todo += _targets(unit, path, scripts)
        todo.append((path, _OTHERS))
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:12]


def _targets(unit: _Unit, path: Path, scripts: Path) -> Iterator[tuple[Path, str]]:
    """List the (file, name) pairs that a statement imports from the package.

    Raises:
        ValueError: If there is no such name, or a script is imported.
    """
    for module, name in unit.imports:
        root = module.partition(".")[0]
        if root != PACKAGE:
            # A script's folder is first on sys.path, whatever else has that name.
            if _exists(scripts / f"{root}.py"):
                raise ValueError(f"{path}: imports the script {root}.py")
            continue
        base = scripts.joinpath(*module.split("."))
        target = next(
            (p for p in (base.with_suffix(".py"), base / "__init__.py") if _exists(p)),
            None,
        )
        if target is None or name not in _statements(target):
            raise ValueError(f"{path}: cannot find `from {module} import {name}`")
        if module in RUN_TIME_MODULES:
            continue
        yield target, name
        for folder in base.relative_to(scripts).parents:
            package = scripts / folder / "__init__.py"
            if folder.parts and _exists(package):
                yield package, _OTHERS


@cache
def _exists(path: Path) -> bool:
    return path.is_file()


@cache
def _statements(path: Path) -> dict[str, list[ast.stmt]]:
    """List the top-level statements of a file by the name that they bind, in order.

    Statements that bind no single name are under ``_OTHERS``; names bound within them
    have an empty list, because those statements count in any case.
    """
    bound: dict[str, list[ast.stmt]] = {_OTHERS: []}
    for statement in ast.parse(path.read_bytes(), filename=str(path)).body:
        if _is_bare_string(statement):
            continue
        parts = _bindings(statement)
        if parts is None:
            bound[_OTHERS].append(statement)
            for name in _names_bound_within(statement):
                bound.setdefault(name, [])
            continue
        for name, part in parts:
            bound.setdefault(name, []).append(part)
    return bound


def _bindings(statement: ast.stmt) -> list[tuple[str, ast.stmt]] | None:
    """List the names that a definition binds, with statements; None if it is none."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [(statement.name, statement)]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        if getattr(statement, "module", None) == "__future__" or any(
            alias.name == "*" for alias in statement.names
        ):
            return None
        return [
            (alias.asname or alias.name.partition(".")[0], _one(statement, alias))
            for alias in statement.names
        ]
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    else:
        return None
    nodes = [node for target in targets for node in ast.walk(target)]
    if any(isinstance(node, ast.Attribute | ast.Subscript) for node in nodes):
        return None  # changes an object that others may hold
    return [(node.id, statement) for node in nodes if isinstance(node, ast.Name)]


def _one(statement: ast.Import | ast.ImportFrom, alias: ast.alias) -> ast.stmt:
    """Return the import statement with one of its names."""
    if isinstance(statement, ast.Import):
        return ast.Import(names=[alias])
    return ast.ImportFrom(module=statement.module, names=[alias], level=statement.level)


def _names_bound_within(statement: ast.stmt) -> Iterator[str]:
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]


def _is_bare_string(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


@cache
def _unit(statement: ast.stmt, path: Path) -> _Unit:
    """Read a statement in one walk: ``ast.dump`` and a second walk take too long.

    Raises:
        ValueError: If the statement holds an import that cannot be followed.
    """
    text: list[str] = []
    names: set[str] = set()
    imports: list[tuple[str, str]] = []

    def read(value: object) -> None:
        if isinstance(value, list):
            text.append("[")
            for item in value:
                if not _is_bare_string(item):
                    read(item)
            text.append("]")
        elif isinstance(value, ast.AST):
            if isinstance(value, ast.Name):
                names.add(value.id)
            elif isinstance(value, ast.Import | ast.ImportFrom):
                imports.extend(_imports(value, path))
            text.append(type(value).__name__)
            for field in value._fields:
                if field not in _SILENT_FIELDS:
                    read(getattr(value, field, None))
        else:
            text.append(repr(value))

    read(statement)
    return _Unit(" ".join(text), frozenset(names), tuple(imports))


def _imports(
    node: ast.Import | ast.ImportFrom, path: Path
) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of what is imported.

    Raises:
        ValueError: If the name cannot be told, or is a module of the package.
    """
    if isinstance(node, ast.ImportFrom):
        pairs = [(node.module or "", alias.name) for alias in node.names]
    else:
        pairs = [(alias.name, "") for alias in node.names]
    for module, name in pairs:
        own = module.partition(".")[0] == PACKAGE
        whole = own and (name == "" or module == PACKAGE)
        if whole or name == "*" or getattr(node, "level", 0):
            raise ValueError(
                f"{path}: cannot follow `{ast.unparse(node)}`: "
                f"write `from {PACKAGE}.module import name`"
            )
        yield module, name
