"""Run the chaos commands with few kills; every run must end as it should."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "last_line"),
    [
        (("driver.py", "--kills", "2"), "2/2"),
        (("signals.py", "--runs", "1", "--signals", "3"), "1/1"),
        (("workflow.py", "--runs", "1", "--kills", "4"), "1/1"),
    ],
)
def test_killed_runs_recover(command, last_line):
    script, *options = command
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name(script), *options],
        stdout=subprocess.PIPE, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == last_line
