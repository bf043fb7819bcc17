"""A share of the kills and races of real jobs, in a process of its own."""

import os
import subprocess
import sys

import pytest
from running import ROOT


@pytest.mark.slow
def test_killed_jobs_and_second_copies_do_no_harm(finished):
    result = subprocess.run(
        [
            *(sys.executable, ROOT / "tests/chaos/jobs.py", "--run", finished),
            *("--kills", "4", "--races", "4", "--seed", "3"),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("4/4") == 2
