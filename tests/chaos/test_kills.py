"""Run a share of the kills and signals, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_and_stopped_training_resumes_exactly():
    result = subprocess.run(
        [
            *(sys.executable, Path(__file__).with_name("training.py")),
            *("--kills", "20", "--signals", "5", "--seed", "3"),
        ],
        capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "20/20" in result.stdout
    assert "5/5" in result.stdout.splitlines()[-1]
