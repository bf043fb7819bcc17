"""Count how the library is built, for the table in docs/architecture.md.

    python -m benchmarks.structure           # the table, in Markdown
    python -m benchmarks.structure --list    # what the table counts against the library

Everything is counted in the syntax trees of `workflow/scripts/prefdistill`. Rules and
tests do not count, and scripts only where it says so.

- A *file* is a module that is not empty.
- A *part* is a package, or a module beside the packages.
- An *arrow* is a module that imports a module of another part. Two imports of one
  module are one arrow, lazy imports count, and so do those for type checkers only.
- An arrow is *backward* if its end does not lie below its start in `LAYERS` of
  tests/unit/test_layers.py.
- A *cycle* is a group of modules that reach each other by imports.
- A *function's length* is its lines from `def` to its end, with docstring, without
  decorators. Methods and inner functions are functions.
- A docstring of a function *opens with a verb* if its first word is one of `VERBS`,
  and `of` does not follow (`Share of ...` is a noun).
- `dict[str, Any]` is counted by its occurrences in the text of library and scripts.
- A module *needs a test* if it has a function. Its test is
  tests/unit/<package>/test_<module>.py.
"""

import argparse
import ast
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "workflow/scripts/prefdistill"
TESTS = ROOT / "tests/unit"
LAYERS_FILE = TESTS / "test_layers.py"
# The package's own file names its version, and its command is the command line.
ENDS = {"__init__", "__main__"}
# A new docstring may open with a verb that is missing here: `--list` shows it. Words
# that are nouns more often, such as `mask` and `number`, are left out.
_VERBS = """
accept adapt add allow append apply ask assert average bind build cache calibrate call
cancel cast check choose clean clear clip close collect combine come compare compile
compute convert copy count create cut decide decode delete describe detach distil
divide download draw drop embed encode end ensure enter estimate evaluate exchange
expand extract fail fill find fit format freeze gather generate get give group halve
hand hash have hold ignore import install join keep launch lay leave let limit link
list load lock log look lower make map mark match measure merge move multiply name
narrow normalise open pack pad parse pause pick place plan plot pool post-pretrain
post-train predict prepare print produce pull push put quantise queue raise read
rebuild record recover reduce refuse register release reload remove rename render
repair repeat replace report request rescale reset resolve restore resume return
reverse round run sample save say scale scan score seed select send separate set shard
shorten show shuffle simulate skip sort spell split spoil spread stack start stop
store stream sum swap take teach tell tokenise train transpose trim truncate try turn
undo unlock unpack update upload use validate verify wait warm warn weigh wrap write
yield
allot assign bound break change concatenate cross-fit digest fold identify label order
overwrite pair project quote re-raise share strip tag
"""
VERBS = frozenset(_VERBS.split())


@dataclass(frozen=True)
class Module:
    """A module of the library.

    Attributes:
        name: Its path below the library, with dots: ``storage.tables``.
        tree: Its syntax tree.
    """

    name: str
    tree: ast.Module

    @property
    def part(self) -> str:
        """Return the package that holds it, or itself."""
        return self.name.partition(".")[0]

    def functions(self) -> list[ast.FunctionDef]:
        """List its functions, methods and inner functions."""
        return [n for n in ast.walk(self.tree) if isinstance(n, ast.FunctionDef)]


def read_modules(library: Path = LIBRARY) -> dict[str, Module]:
    """Read the modules that are not empty, by name."""
    modules = {}
    for path in sorted(library.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if tree.body:
            parts = path.relative_to(library).with_suffix("").parts
            name = ".".join(parts)
            modules[name] = Module(name, tree)
    return modules


def imports_of(module: Module, modules: dict[str, Module]) -> Iterator[str]:
    """Yield the library's modules that a module imports, lazily or not."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` and `from module import name`.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names.append(node.module)
        else:
            continue
        for name in names:
            root, _, rest = name.partition(".")
            if root == "prefdistill" and rest in modules:
                yield rest


def find_arrows(modules: dict[str, Module]) -> list[tuple[str, str]]:
    """Return each (module, imported module) once, within a part too."""
    return sorted(
        {
            (module.name, imported)
            for module in modules.values()
            for imported in imports_of(module, modules)
            if imported != module.name
        }
    )


def read_layers(path: Path = LAYERS_FILE) -> dict[str, int]:
    """Read the rank of each part, 0 at the bottom, from the test that holds them."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS":
            layers = ast.literal_eval(node.value)
            return {part: rank for rank, parts in enumerate(layers) for part in parts}
    raise SystemExit(f"{path}: has no list LAYERS; write the order of the parts there")


def part_of(name: str) -> str:
    """Return the part of a module's name."""
    return name.partition(".")[0]


def backward(
    arrows: list[tuple[str, str]], rank: dict[str, int]
) -> list[tuple[str, str]]:
    """Keep the arrows between parts that do not go down."""
    return [
        (start, end)
        for start, end in arrows
        if part_of(start) not in ENDS
        and part_of(start) != part_of(end)
        and rank[part_of(end)] >= rank[part_of(start)]
    ]


def find_cycles(arrows: list[tuple[str, str]]) -> list[list[str]]:
    """Group the modules that reach each other; a module alone is no group."""
    ends: dict[str, set[str]] = {}
    for start, end in arrows:
        ends.setdefault(start, set()).add(end)
    reached = {start: _reach(start, ends) for start in ends}
    groups = {
        tuple(sorted(end for end in found if start in reached.get(end, ())))
        for start, found in reached.items()
        if start in found
    }
    return [list(group) for group in sorted(groups)]


def _reach(start: str, ends: dict[str, set[str]]) -> set[str]:
    """Return the modules that imports lead to, the start only if they lead back."""
    found: set[str] = set()
    waiting = list(ends[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += ends.get(name, ())
    return found


def opens_with_verb(docstring: str) -> bool:
    """Tell whether a docstring's first word is one of ``VERBS``."""
    first, second, *_ = [*docstring.split(), "", ""]
    return first.strip(".,:;").lower() in VERBS and second != "of"


def docstrings(modules: dict[str, Module]) -> list[tuple[str, str]]:
    """Return (module:line, first line) of each function that has a docstring."""
    return [
        (f"{module.name}:{function.lineno}", text.splitlines()[0])
        for module in modules.values()
        for function in module.functions()
        if (text := ast.get_docstring(function))
    ]


def untested(modules: dict[str, Module], tests: Path = TESTS) -> list[str]:
    """List the modules with a function that have no test file of their name."""
    missing = []
    for module in modules.values():
        *folder, stem = module.name.split(".")
        path = tests.joinpath(*folder, f"test_{stem}.py")
        if module.name not in ENDS and module.functions() and not path.exists():
            missing.append(module.name)
    return missing


def count_open_dicts(folder: Path = LIBRARY.parent) -> int:
    """Count the occurrences of ``dict[str, Any]`` in a folder's Python files."""
    files = folder.rglob("*.py")
    return sum(path.read_text("utf-8").count("dict[str, Any]") for path in files)


def figures(modules: dict[str, Module]) -> dict[str, str]:
    """Compute the table: its labels and values, in order."""
    arrows = find_arrows(modules)
    crossing = [each for each in arrows if part_of(each[0]) != part_of(each[1])]
    lengths = [
        (function.end_lineno or 0) - function.lineno + 1
        for module in modules.values()
        for function in module.functions()
    ]
    firsts = [opens_with_verb(text) for _, text in docstrings(modules)]
    return {
        "files": f"{len(modules)}",
        "arrows across packages": f"{len(crossing)}",
        "backward arrows": f"{len(backward(arrows, read_layers()))}",
        "cycles": f"{len(find_cycles(arrows))}",
        "functions": f"{len(lengths):,}",
        "lines of a function, median": f"{statistics.median(lengths):g}",
        "lines of the longest function": f"{max(lengths)}",
        "docstrings of functions that open with a verb": (
            f"{sum(firsts) / len(firsts):.0%} of {len(firsts)}"
        ),
        "`dict[str, Any]` in library and scripts": f"{count_open_dicts()}",
        "modules without a test of their name": f"{len(untested(modules))}",
    }


def markdown(rows: dict[str, str]) -> str:
    """Format the table."""
    lines = ["| figure | now |", "| --- | ---: |"]
    return "\n".join(
        [*lines, *(f"| {name} | {value} |" for name, value in rows.items())]
    )


def findings(modules: dict[str, Module]) -> Iterator[str]:
    """Yield a line for each thing that the table counts against the library."""
    arrows = find_arrows(modules)
    for start, end in backward(arrows, read_layers()):
        yield f"backward: {start} imports {end}"
    for group in find_cycles(arrows):
        yield f"cycle: {', '.join(group)}"
    for place, text in docstrings(modules):
        if not opens_with_verb(text):
            yield f"no verb: {place}: {text}"
    for name in untested(modules):
        yield f"no test: {name}"


def main() -> None:
    """Print the table, or the findings behind it."""
    description, _, _ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--list", action="store_true", help="print the findings")
    modules = read_modules()
    if parser.parse_args().list:
        print(*findings(modules), sep="\n")
    else:
        print(markdown(figures(modules)))


if __name__ == "__main__":
    main()
