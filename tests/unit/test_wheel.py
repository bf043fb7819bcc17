"""The package is built from the workflow's library, and imports on its own."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from judge_samples import make_judge

from prefdistill.cli import COMMANDS
from prefdistill.version import __version__

ROOT = Path(__file__).resolve().parents[2]
# What the workflow needs and a user of a judge does not.
WORKFLOW_ONLY = (
    *("snakemake", "jsonschema", "peft", "sklearn", "datasets", "matplotlib", "scipy"),
    *("polars", "optimum", "bitsandbytes", "gptqmodel"),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the built package and nothing else."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    package = "workflow/scripts/prefdistill"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / package, source / package, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    built, target = source / "built", source / "target"
    for command in (
        ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", built, source],
        ["install", "--no-deps", "--no-index", "--target", target, "--find-links"]
        + [built, "prefdistill"],
    ):
        done = subprocess.run([*pip, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert [path.name for path in built.iterdir()] == [
        f"prefdistill-{__version__}-py3-none-any.whl"
    ]
    return target


def test_a_judge_works_with_only_what_is_declared(
    installed, tmp_path, tiny_model_folder
):
    scaling = {"method": "none", "tied": True, "a": [1, 1, 1], "b": [0, 0, 0]}
    base, weight = tiny_model_folder("llama"), torch.zeros(3, 32)
    make_judge(tmp_path, base, weight, scaling, ["AB"])
    code = (
        "import sys\n"
        f"sys.modules |= dict.fromkeys({WORKFLOW_ONLY})\n"
        "import prefdistill, prefdistill.predict\n"
        "from prefdistill.judge import Judge\n"
        f"verdict = Judge.load({str(tmp_path)!r}).compare('a', 'b', 'c')\n"
        "print(prefdistill.__file__, prefdistill.__version__, round(verdict.tie, 3))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-s", "-c", code],
        env=environment(installed), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"{installed}/prefdistill/__init__.py {__version__} 0.333\n"


def environment(installed):
    """The environment in which the installed package is found first."""
    return os.environ | {"PYTHONPATH": str(installed)}


def installed_command(installed, name, *arguments):
    return subprocess.run(
        [installed / "bin" / name, *arguments],
        env=environment(installed), capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        "prefdistill-predict",
        "prefdistill",
        "prefdistill predict",
        "prefdistill check-served",
        "prefdistill push",
    ],
)
def test_the_commands_are_installed(installed, words):
    done = installed_command(installed, *words.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {words} [-h]")


@pytest.mark.parametrize("name", ["run", "plan", "status", "pool"])
def test_a_command_that_needs_the_workflow_says_so(installed, name):
    done = installed_command(installed, "prefdistill", name)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: prefdistill {name}: needs the workflow")
    assert "in a clone" in line


def test_the_wheels_commands_need_only_what_is_declared(installed):
    modules = sorted({each.module for each in COMMANDS.values() if each.in_wheel})
    code = (
        "import importlib, sys\n"
        f"sys.modules |= dict.fromkeys({WORKFLOW_ONLY})\n"
        f"for name in {modules}: print(importlib.import_module(name).__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-s", "-c", code],
        env=environment(installed), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(line.startswith(str(installed)) for line in done.stdout.splitlines())


def test_there_is_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    changes = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[(\d[^\]]*)\]", changes, re.MULTILINE)
    coming = re.findall(r"^What is to become (\S+),", changes, re.MULTILINE)
    assert __version__ in [*released[:1], *coming]


def test_what_is_declared_is_what_the_lock_has():
    """The lower bounds are not above the versions that were tested."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = dict(
        line.lower().split("==")
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    optional = project["optional-dependencies"].values()
    extras = [name for names in optional for name in names]
    for requirement in [*project["dependencies"], *extras]:
        name, bound = re.match(r"([\w-]+)>=([\d.]+)", requirement).groups()
        tested = [int(part) for part in lock[name].split(".")]
        assert [int(part) for part in bound.split(".")] <= tested, requirement
