"""The states of jobs, by logs and locks that real jobs have written."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from prefdistill.pipeline.job_states import Job, state_of

SCRIPTS = Path(__file__).resolve().parents[3] / "workflow/scripts"
JOB = Job("train_teacher", True, 30.0, 2, None, None)

# A job that counts to `sys.argv[2]` of ten units, and then ends as it is told.
SCRIPT = """
import os, signal, sys, types
from prefdistill.errors import Interrupted, UserError
from prefdistill.running.job import guarded
from prefdistill.running.progress import Progress
job = types.SimpleNamespace(
    log=[sys.argv[3]], threads=1, input=[], output=["out.txt"], params={}
)
with guarded(job):
    progress = Progress(10, "steps", every_s=0)
    for _ in range(int(sys.argv[2])):
        progress.update(n_tokens=100)
    if sys.argv[1] == "fail":
        raise UserError("the data are bad; mend them")
    if sys.argv[1] == "stop":
        os.kill(os.getpid(), signal.SIGTERM)
        raise Interrupted("saved", progressed=True)
    if sys.argv[1] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "wait":
        print("waiting", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path):
    """Return a function that starts such a job, and returns it as a job of a graph."""
    (tmp_path / "job.py").write_text(SCRIPT)

    def start_job(end, n_units):
        log = tmp_path / "logs/train_teacher" / f"{end}.log"
        process = subprocess.Popen(
            [sys.executable, "job.py", end, str(n_units), str(log)],
            cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
            env=os.environ | {"PYTHONPATH": str(SCRIPTS)},
        )  # fmt: skip
        return replace(JOB, log=log), process

    return start_job


@pytest.mark.parametrize(
    ("end", "kind", "text"),
    [
        ("finish", "left", ""),
        ("fail", "failed", "UserError: the data are bad; mend them (log: "),
        ("stop", "stopped", "4/10 steps (40 %)"),
        ("die", "stopped", "4/10 steps (40 %)"),
    ],
)
def test_the_state_of_a_job_that_has_ended(start, end, kind, text):
    job, process = start(end, 4)
    process.communicate(timeout=60)
    state = state_of(job)
    assert state.kind == kind
    assert text in state.text
    assert state.share == (0.4 if kind == "stopped" else 0)
    assert state_of(replace(job, needed=False)).kind == "done"


def test_a_job_that_runs_shows_its_progress(start):
    job, process = start("wait", 5)
    try:
        assert process.stdout.readline() == "waiting\n"
        state = state_of(job)
    finally:
        process.communicate("", timeout=60)
    assert (state.kind, state.share) == ("running", 0.5)
    assert state.text.startswith("5/10 steps (50 %)")
    assert "tokens/s, ETA 0:00:0" in state.text


def test_a_job_without_a_log_is_left(tmp_path):
    assert state_of(JOB).kind == "left"
    assert state_of(replace(JOB, log=tmp_path / "no/such.log")).kind == "left"
