"""Read configuration files as plain data: bounded, whole, no key twice, no code.

Snakemake reads YAML through YTE, which runs Python that a file with ``__use_yte__``
holds, and before any Snakefile could look. It also keeps the last of two equal keys,
and follows aliases and nesting without bound. So ``read_plainly`` puts this module's
reader in place of Snakemake's. It must act before Snakemake reads its command line:

- ``prefdistill run`` starts Snakemake through this file, ``plan`` and ``status`` call
  ``read_plainly``;
- `make setup` puts a copy of this file into the environment, with a line in a ``.pth``
  file that starts it in every process of Snakemake, so that plain ``snakemake`` and the
  jobs on a cluster's nodes are covered too.

A Snakemake of another environment reads as it always does. So do profiles, which are
the user's own and may name any command anyway.

The file stands alone (YAML and the standard library), as its copy has no package
around it.
"""

import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

MERGE, INT = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:int"
MOST_BYTES = 1 << 20
MOST_NODES = 100_000  # values, those that aliases repeat included
MOST_DIGITS = 100
TEMPLATE_KEY = re.compile(r"__\w*__")


class ConfigFault(Exception):
    """A configuration file that cannot be used; one line says where and why."""


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read one configuration file, JSON or YAML.

    Raises:
        ConfigFault: One line with the file, the line in it and what is wrong.
    """
    try:
        with open(path, "rb") as handle:
            data = handle.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigFault(
            f"config: {path}: {error.strerror} (seen from {Path.cwd()}); name a "
            "configuration file that is there"
        ) from error
    return read_config(data, str(path))


def read_config(data: bytes, name: str) -> dict[str, Any]:
    """Read the content of a configuration file, JSON or YAML.

    Args:
        data: Its bytes, at most one more than ``MOST_BYTES``.
        name: Its name, for messages.

    Raises:
        ConfigFault: One line with the file, the line in it and what is wrong.
    """
    if len(data) > MOST_BYTES:
        raise ConfigFault(f"config: {name}: is larger than {MOST_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
        root = yaml.compose(text, yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode) or not root.value:
            kind = "empty" if root is None else "no mapping"
            raise ConfigFault(
                f"config: {name}: is {kind}; it must hold keys with values"
            )
        _check_size(name, root)
        for node in _nodes(root):
            _check_node(name, node)
        try:
            return json.loads(text)
        except ValueError:
            return yaml.load(text, yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise ConfigFault(
            f"config: {name}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigFault(f"config: {name}{_explain(error)}") from error
    except RecursionError as error:
        raise ConfigFault(f"config: {name}: nested too deeply") from error
    except (ValueError, TypeError) as error:  # a date that is none, a list as a key
        reason = " ".join(str(error).split())
        raise ConfigFault(f"config: {name}: not valid YAML ({reason})") from error


def _explain(error: yaml.YAMLError) -> str:
    """Say where a file stops being YAML, and why."""
    mark = getattr(error, "problem_mark", None)
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    return f"{place}: not valid YAML ({problem}); mend it, and indent with spaces"


def _parts(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _nodes(root: yaml.Node) -> Iterable[yaml.Node]:
    """Yield all nodes of a document, each once even if aliases name it again."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            waiting += _parts(node)


def _check_size(name: str, root: yaml.Node) -> None:
    """Count values as if aliases were written out, without doing so.

    Raises:
        ConfigFault: If there are too many, or an alias names what it lies in.
    """
    sizes: dict[int, int | None] = {}  # None while a node's parts are counted
    waiting = [(root, False)]
    while waiting:
        node, counted = waiting.pop()
        if counted:
            sizes[id(node)] = 1 + sum(sizes[id(part)] for part in _parts(node))
            if sizes[id(node)] > MOST_NODES:
                raise ConfigFault(
                    f"config: {name}, line {node.start_mark.line + 1}: aliases make "
                    f"more than {MOST_NODES} values of it; write them out"
                )
        elif id(node) not in sizes:
            sizes[id(node)] = None
            waiting.append((node, True))
            waiting += [(part, False) for part in _parts(node)]
        elif sizes[id(node)] is None:
            raise ConfigFault(
                f"config: {name}, line {node.start_mark.line + 1}: an alias names "
                "what it lies in; write the value out"
            )


def _check_node(name: str, node: yaml.Node) -> None:
    """Refuse equal keys, keys of templates, and numbers too long to be meant.

    Raises:
        ConfigFault: One line with the file and the line in it.
    """
    if node.tag == INT and len(node.value) > MOST_DIGITS:
        raise ConfigFault(
            f"config: {name}, line {node.start_mark.line + 1}: a number of "
            f"{len(node.value)} digits; write at most {MOST_DIGITS}"
        )
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
            continue
        line, pair = key.start_mark.line + 1, (key.tag, key.value)
        if TEMPLATE_KEY.fullmatch(key.value):
            raise ConfigFault(
                f"config: {name}, line {line}: the key {key.value!r} is one of YTE's, "
                "which runs code; a configuration holds plain values, so remove it"
            )
        if pair in lines:
            raise ConfigFault(
                f"config: {name}, line {line}: the key {key.value!r} is there twice, "
                f"first in line {lines[pair]}; keep one"
            )
        lines[pair] = line


def read_plainly() -> None:
    """Have this process's Snakemake read configuration files with this module."""
    import snakemake.common.configfile as loader

    as_ever = loader._load_configfile

    def load(path: Any, filetype: str = "Config") -> Any:
        if filetype != "Config" or not isinstance(path, str | Path):
            return as_ever(path, filetype)  # a schema, which is the workflow's own
        try:
            return read_config_file(path)
        except ConfigFault as fault:
            sys.exit(f"error: {fault}")

    loader._load_configfile = load


def guard() -> None:
    """Call ``read_plainly`` if this process was started as Snakemake.

    The environment's ``.pth`` file calls it before the program's first import.
    """
    words = [word for word in sys.orig_argv[1:] if not word.startswith("-")]
    if words and os.path.basename(words[0]) == "snakemake":
        read_plainly()


if __name__ == "__main__":
    read_plainly()
    from snakemake.cli import main

    sys.argv[0] = "snakemake"
    main()
