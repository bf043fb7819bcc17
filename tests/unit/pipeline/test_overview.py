"""What a run would take and where it stands, by logs that real jobs have written."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from prefdistill.pipeline.costs import Work
from prefdistill.pipeline.overview import Job, plan_text, state_of, status_text

SCRIPTS = Path(__file__).resolve().parents[3] / "workflow/scripts"
SITE = {"gpu_tflops": 80}
# 80 TFLOP/s for two hours on two GPUs.
WORK = Work(30, tflop=80 * 2 * 7200, gpus=2, disk_gb=5, scratch_gb=40)
JOB = Job("train_teacher", True, 30.0, 2, WORK, None)
TABLES = Job("make_folds", True, 2.0, 0, Work(2, minutes=30, disk_gb=1), None)

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
    """Function that starts such a job and gives it as the overview sees it."""
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


def test_a_job_that_runs_shows_its_progress_and_what_is_left(start):
    job, process = start("wait", 5)
    try:
        assert process.stdout.readline() == "waiting\n"
        state = state_of(job)
        text = status_text([job, replace(JOB, needed=False)], SITE, "a driver", "all")
    finally:
        process.communicate("", timeout=60)
    assert (state.kind, state.share) == ("running", 0.5)
    assert "tokens/s, ETA 0:00:0" in state.text
    lines = text.splitlines()
    assert lines[0] == "a driver is at work."
    # Of four GPU-hours half are left; the other job is done.
    assert lines[-5].split() == ["all", "1", "1", "2.00"]
    assert "running: train_teacher wait: 5/10 steps (50 %)" in text


def test_a_job_without_a_log_is_left(tmp_path):
    assert state_of(JOB).kind == "left"
    assert state_of(replace(JOB, log=tmp_path / "no/such.log")).kind == "left"


def test_a_plan_adds_up_what_is_needed():
    done = replace(JOB, needed=False)
    text = plan_text([TABLES, JOB, JOB, done], SITE, free_gb=100)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert rows["make_folds"] == ["1", "0.50", "2.00", "1.00"]
    assert rows["train_teacher"] == ["2", "2", "8.00", "2.00", "30.0", "10.0", "40.0"]
    assert rows["all"] == ["3", "2", "8.00", "2.00", "30.0", "11.0", "40.0"]
    assert "at\n80 TFLOP/s" in text
    assert "warning" not in text
    assert "warning: only 10.0 GB are free here. The results may take 11.0 GB." in (
        plan_text([TABLES, JOB, JOB], SITE, free_gb=10)
    )
    assert plan_text([done], SITE, 1) == "Nothing is to be done."


def test_a_rule_without_an_estimate_is_named():
    text = plan_text([JOB, replace(JOB, rule="custom", work=None)], SITE, 100)
    assert text.endswith("without an estimate: custom")
