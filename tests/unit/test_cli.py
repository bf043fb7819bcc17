"""The command: its list, help, exit status, and the link that it is found by."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from prefdistill.cli import COMMANDS, main
from prefdistill.running.code_digests import SCRIPTS, code_digest
from prefdistill.version import __version__

ROOT = Path(__file__).resolve().parents[2]


def run(*command):
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True
    )


def test_help_names_every_command_and_every_exit_status(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    said = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name:<12}  {command.summary}\n" in said
    for status in ("0  ", "1  ", "2  ", "143"):
        assert f"\n  {status} " in said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: prefdistill {name} ")
    assert f"example: prefdistill {name} " in said


def test_help_imports_no_command():
    """So that it takes a tenth of a second and not several."""
    code = "import sys; from prefdistill.cli import main\n"
    code += "try: main(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    done = run("-c", code)
    assert done.returncode == 0
    loaded = set(done.stderr.split())
    assert "prefdistill.cli" in loaded
    assert not loaded & {each.module for each in COMMANDS.values()}
    assert not loaded & {"numpy", "yaml", "torch", "prefdistill.running.job"}


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train"])
    assert "invalid choice: 'train'" in capsys.readouterr().err


def test_the_command_runs_in_a_clone_without_installation():
    done = run("-m", "prefdistill", "--version")
    assert (done.stdout, done.stderr) == (f"{__version__}\n", "")


def test_an_error_is_one_line():
    done = run("-m", "prefdistill", "run", "--dry-run", "--configfile", "no/such.yaml")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: config: no/such.yaml: No such file")


def test_the_link_and_the_package_give_the_same_digests():
    """The command imports the package by the link, a job by its folder."""
    code = "from prefdistill.running.code_digests import SCRIPTS, code_digest\n"
    code += "import prefdistill\n"
    code += "print(prefdistill.__path__[0], SCRIPTS, code_digest('train_teacher.py'))"
    by_link = run("-c", code)
    expected = f"{ROOT}/prefdistill {SCRIPTS} {code_digest('train_teacher.py')}\n"
    assert by_link.stdout == expected, by_link.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_where_the_list_says(name):
    command = COMMANDS[name]
    assert callable(getattr(importlib.import_module(command.module), command.function))
