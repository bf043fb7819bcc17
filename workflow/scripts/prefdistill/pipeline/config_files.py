"""Read configuration files as plain data: bounded, whole, no key twice, no code.

Snakemake reads YAML through YTE, which runs Python that a file with ``__use_yte__``
holds, and before any Snakefile could look. It also keeps the last of two equal keys,
and follows aliases and nesting without bound, the last two in ``--config`` as well. So
``read_plainly`` puts this module's reader and checks in place of Snakemake's. It must
act before Snakemake reads its command line:

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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

MERGE, INT, TEXT = (f"tag:yaml.org,2002:{kind}" for kind in ("merge", "int", "str"))
MOST_BYTES = 1 << 20
# Characters of all values, those that aliases repeat included. A value counts 50 more:
# PyYAML reads 20,000 short ones in a second.
MOST_CHARACTERS, PER_VALUE = 1 << 20, 50
MOST_DIGITS = 100
MOST_SHOWN = 80  # characters of a key in a message
GIVEN_KEY = re.compile(r"[a-zA-Z_][\w-]*\w")
# The command's name, or the module after -m.
SNAKEMAKE = re.compile(r"(-m)?snakemake(\.\w+)*")


class ConfigFault(Exception):
    """A configuration file that cannot be used; one line says where and why."""


class _Loader(yaml.SafeLoader):
    """PyYAML's own, with a bound on what aliases and lists amount to."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.size = 0
        self.sizes: dict[int, int] = {}  # of whole nodes, by id

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Make the next node, and count it as if its aliases were written out.

        Raises:
            ConfigFault: If there is too much, or an alias names what it lies in.
        """
        line = self.peek_event().start_mark.line + 1
        is_alias, before = self.check_event(yaml.AliasEvent), self.size
        node = super().compose_node(parent, index)
        if not is_alias:
            own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
            self.size += own + PER_VALUE
            self.sizes[id(node)] = self.size - before
        elif id(node) in self.sizes:
            self.size += self.sizes[id(node)]
        else:
            raise ConfigFault(
                f", line {line}: an alias names what it lies in; write the value out"
            )
        if self.size > MOST_CHARACTERS:
            raise ConfigFault(
                f", line {line}: is too large: at most {MOST_CHARACTERS // PER_VALUE} "
                f"values and {MOST_CHARACTERS} characters, with aliases written out"
            )
        return node


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read one configuration file, JSON or YAML.

    Raises:
        ConfigFault: One line with the file, the line in it and what is wrong.
    """
    try:
        with open(path, "rb") as handle:
            data = handle.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: half a character, or NUL
        reason = getattr(error, "strerror", None) or error
        raise ConfigFault(
            f"config: {_shown(path)}: {reason} (seen from {_shown(Path.cwd())}); name "
            "a configuration file that is there"
        ) from error
    return read_config(data, str(path))


def _shown(name: str | Path) -> str:
    """Write a name in one line: one with signs that do not print, as Python would."""
    return str(name) if str(name).isprintable() else ascii(str(name))


def read_config(data: bytes, name: str) -> dict[str, Any]:
    """Read the content of a configuration file, JSON or YAML.

    Args:
        data: Its bytes, at most one more than ``MOST_BYTES``.
        name: Its name, for messages.

    Raises:
        ConfigFault: One line with the file, the line in it and what is wrong.
    """
    place = f"config: {_shown(name)}"
    if len(data) > MOST_BYTES:
        raise ConfigFault(f"{place}: is larger than {MOST_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
        is_json = _is_json(text)
        # Only between the values of JSON are there tabs, which YAML does not allow.
        root = _compose(text.replace("\t", " ") if is_json else text)
        if not isinstance(root, yaml.MappingNode) or not root.value:
            kind = "empty" if root is None else "no mapping"
            raise ConfigFault(f": is {kind}; it must hold keys with values")
        value = json.loads(text) if is_json else yaml.load(text, yaml.SafeLoader)
        # Half a character, and a key such as a date, would fail where it is written.
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except ConfigFault as fault:
        raise ConfigFault(f"{place}{fault}") from fault
    except UnicodeDecodeError as error:
        raise ConfigFault(
            f"{place}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigFault(f"{place}{_explain(error)}") from error
    except RecursionError as error:
        raise ConfigFault(f"{place}: nested too deeply") from error
    except Exception as error:  # PyYAML lets any through, for a date that is none
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigFault(
            f"{place}: not valid YAML ({reason:.{MOST_SHOWN}}); write plain values"
        ) from error
    if not isinstance(value, dict):
        raise ConfigFault(f"{place}: is no mapping; it must hold keys with values")
    return value


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _compose(text: str) -> yaml.Node | None:
    """Read a text as nodes of YAML, bounded, with keys that configurations may have.

    Raises:
        ConfigFault: The line and what is wrong, to be put behind a name.
        yaml.YAMLError: If it is not YAML.
        RecursionError: If it nests too deeply.
    """
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
    finally:
        loader.dispose()
    for node in _nodes(root) if root else ():
        _check_node(node)
    return root


def check_given(entries: Sequence[str]) -> None:
    """Check the values of ``--config``, as Snakemake follows their aliases as well.

    Args:
        entries: The words, such as ``folds={n: 3}``.

    Raises:
        ConfigFault: One line with the key and what is wrong.
    """
    for entry in entries:
        key, sign, value = entry.partition("=")
        if not sign or not GIVEN_KEY.fullmatch(key):
            raise ConfigFault(
                f"--config {entry!r:.{MOST_SHOWN}}: write 'key=value', or 'key={{key: "
                "value}' for a value inside"
            )
        try:
            _compose(value.strip("'\""))  # as Snakemake does
        except ConfigFault as fault:
            raise ConfigFault(f"--config {key!r:.{MOST_SHOWN}}{fault}") from fault
        except Exception:  # no YAML, so Snakemake takes it as text
            continue


def _explain(error: yaml.YAMLError) -> str:
    """Say where a file stops being YAML, and why."""
    mark = getattr(error, "problem_mark", None)
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    return f"{place}: not valid YAML ({problem}); mend it, and indent with spaces"


def _nodes(root: yaml.Node) -> Iterable[yaml.Node]:
    """Yield all nodes of a document, each once even if aliases name it again."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _check_node(node: yaml.Node) -> None:
    """Refuse keys that are no text, equal or YTE's, and numbers too long to be meant.

    Raises:
        ConfigFault: The line and what is wrong, to be put behind a name.
    """
    if node.tag == INT and len(node.value) > MOST_DIGITS:
        raise ConfigFault(
            f", line {node.start_mark.line + 1}: a number of {len(node.value)} digits; "
            f"write at most {MOST_DIGITS}"
        )
    lines: dict[str, int] = {}
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.tag == MERGE:
            continue
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigFault(f", line {line}: a key is no text; write a name there")
        shown = f"{key.value!r:.{MOST_SHOWN}}"
        if key.tag != TEXT:
            raise ConfigFault(
                f", line {line}: the key {shown} is no text; put it in quotes"
            )
        if key.value.startswith("__") and key.value.endswith("__"):
            raise ConfigFault(
                f", line {line}: the key {shown} is one of YTE's, which runs code; a "
                "configuration holds plain values, so remove it"
            )
        if key.value in lines:
            raise ConfigFault(
                f", line {line}: the key {shown} is there twice, first in line "
                f"{lines[key.value]}; keep one"
            )
        lines[key.value] = line


def read_plainly() -> None:
    """Have this process's Snakemake read configurations with this module."""
    import snakemake.cli
    import snakemake.common.configfile as loader

    load_as_ever, parse_as_ever = loader._load_configfile, snakemake.cli.parse_config

    def load(path: Any, filetype: str = "Config") -> Any:
        if filetype != "Config" or not isinstance(path, str | Path):
            return load_as_ever(path, filetype)  # a schema: the workflow's own
        try:
            return read_config_file(path)
        except ConfigFault as fault:
            sys.exit(f"error: {fault}")

    def parse(entries: Sequence[str] | None) -> Any:
        try:
            check_given(entries or ())
            return parse_as_ever(entries)
        except ConfigFault as fault:
            sys.exit(f"error: {fault}")

    loader._load_configfile, snakemake.cli.parse_config = load, parse


def guard() -> None:
    """Call ``read_plainly`` if this process was started as Snakemake.

    The environment's ``.pth`` file calls it before the program's first import.
    """
    words = map(os.path.basename, sys.orig_argv[1:])
    if any(map(SNAKEMAKE.fullmatch, words)):
        read_plainly()


if __name__ == "__main__":
    read_plainly()
    from snakemake.cli import main

    sys.argv[0] = "snakemake"
    main()
