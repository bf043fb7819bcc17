"""Check configuration files before they are merged: whole YAML, and no key twice.

Snakemake keeps the last of two equal keys, and does not say which file is broken, or
where. Imported by the Snakefile and the driver, so it stays light.
"""

from collections.abc import Iterable
from pathlib import Path

import yaml

from prefdistill.errors import UserError

MERGE = "tag:yaml.org,2002:merge"


def check_config_file(path: str | Path) -> None:
    """Check one configuration file.

    Raises:
        UserError: One line with the file, the line in it and what is wrong.
    """
    try:
        root = yaml.compose(Path(path).read_bytes(), yaml.SafeLoader)
    except OSError as error:
        raise UserError(
            f"config: {path}: {error.strerror} (seen from {Path.cwd()}); name a "
            "configuration file that is there"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"config: {path}{_explain(error)}") from error
    except RecursionError as error:
        raise UserError(f"config: {path}: nested too deeply") from error
    if not isinstance(root, yaml.MappingNode) or not root.value:
        kind = "empty" if root is None else "no mapping"
        raise UserError(f"config: {path}: is {kind}; it must hold keys with values")
    for node in _mappings(root):
        _check_keys(path, node)


def _explain(error: yaml.YAMLError) -> str:
    """Say where a file stops being YAML, and why."""
    mark = getattr(error, "problem_mark", None)
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    return f"{place}: not valid YAML ({problem}); mend it, and indent with spaces"


def _mappings(root: yaml.Node) -> Iterable[yaml.MappingNode]:
    """Yield all mappings of a document, each once even if aliases name it again."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            waiting += [part for pair in node.value for part in pair]
        else:
            waiting += node.value


def _check_keys(path: str | Path, node: yaml.MappingNode) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
            continue
        line, name = key.start_mark.line + 1, (key.tag, key.value)
        if name in lines:
            raise UserError(
                f"config: {path}, line {line}: the key {key.value!r} is there twice, "
                f"first in line {lines[name]}; keep one"
            )
        lines[name] = line
