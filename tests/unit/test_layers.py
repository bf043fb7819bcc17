"""Hold the library's order: imports go down, and the Snakefile's part stays light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parents[2] / "workflow/scripts/prefdistill"
# Lowest first. Packages of one layer do not import each other.
LAYERS = [
    ["errors", "version", "settings", "classes"],
    ["storage"],
    ["running"],
    ["data", "scores", "engine", "pipeline"],
    ["models"],
    ["training", "report", "simulation"],
    ["export"],
    ["judge"],
    ["predict"],
    ["check_served"],
    ["cli"],
]
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
# The package's own file names its version, and its command is the command line.
ENDS = {"__init__": "version", "__main__": "cli"}
HEAVY = {
    *("datasets", "numpy", "pandas", "peft", "pyarrow", "safetensors"),
    *("scipy", "sklearn", "torch", "transformers"),
}
# Names of modules as text; those of files of the driver and of a logger are none.
MODULE = re.compile(r"prefdistill\.(?!lock|owner|job|run\.json|digests)[a-z_.]+")


def arrows():
    """Yield (file, line, part, imported part), lazy imports included."""
    for path in sorted(LIBRARY.rglob("*.py")):
        part = path.relative_to(LIBRARY).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module == "prefdistill":
                modules = [f"prefdistill.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}:{node.lineno}: a relative import"
                modules = [node.module]
            elif isinstance(node, ast.Constant) and MODULE.fullmatch(str(node.value)):
                modules = [node.value]  # for importlib
            else:
                continue
            for module in modules:
                root, _, rest = module.partition(".")
                if root == "prefdistill":
                    yield path, node.lineno, part, rest.partition(".")[0]


def test_every_part_has_a_layer():
    parts = {path.stem for path in LIBRARY.iterdir() if path.name != "__pycache__"}
    assert parts == RANK.keys() | ENDS.keys()


def test_imports_go_down():
    wrong = [
        f"{path.relative_to(LIBRARY)}:{line} imports {imported}"
        for path, line, part, imported in arrows()
        if part not in ENDS and imported != part and RANK[imported] >= RANK[part]
    ]
    assert not wrong


def test_only_the_command_line_imports_pipeline():
    users = {part for *_, part, imported in arrows() if imported == "pipeline"}
    assert users <= {"pipeline", "cli"}


def test_no_script_of_a_job_imports_pipeline():
    scripts = sorted(LIBRARY.parent.glob("*.py"))
    assert scripts
    assert not [path for path in scripts if "prefdistill.pipeline" in path.read_text()]


def test_modules_of_a_package_do_not_import_in_circles():
    imports = {}
    for path in LIBRARY.glob("*/*.py"):
        package = path.parent.name
        found = re.findall(
            rf"from prefdistill\.{package}\.(\w+) import", path.read_text()
        )
        imports[package, path.stem] = {(package, name) for name in found}
    done = set()
    while ready := {
        m for m, needs in imports.items() if m not in done and needs <= done
    }:
        done |= ready
    assert not imports.keys() - done


def test_the_packages_themselves_import_nothing():
    files = [path for path in LIBRARY.glob("*/__init__.py") if path.read_text()]
    assert not files


@pytest.mark.parametrize(
    "module", sorted(path.stem for path in LIBRARY.glob("pipeline/[a-z]*.py"))
)
def test_the_snakefile_imports_nothing_heavy(module):
    code = (
        f"import sys, prefdistill.pipeline.{module}; "
        f"print(*sorted({HEAVY} & sys.modules.keys()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=LIBRARY.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.split() == []
