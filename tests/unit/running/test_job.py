"""What every job shares, in processes of its own: locks, signals, the time limit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[3] / "workflow/scripts"
# A job that works for `steps` tenths of a second and writes its process number; it can
# be stopped between two steps.
JOB = """
import os, sys, time, types
from prefdistill.storage.whole_files import write_text
from prefdistill.errors import Interrupted
from prefdistill.running.job import run_job
from prefdistill.running.job import guarded
from prefdistill.running.stopping import stop_requested
job = types.SimpleNamespace(
    log=["logs/rule/a.log"], threads=1, input=["in.txt"], output=["out.txt"],
    params={"x": sys.argv[2]},
)
with guarded(job):
    print("started", flush=True)
    for step in range(int(sys.argv[1])):
        if stop_requested():
            raise Interrupted(f"saved at step {step}", progressed=step > 0)
        time.sleep(0.1)
    write_text("out.txt", f"{os.getpid()} {os.environ.get('HF_TOKEN')}")
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Function that starts a copy of the job in the test's folder."""
    (tmp_path / "in.txt").touch()
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    started = []

    def start(steps=3, params="1", wait=True, **environment):
        process = subprocess.Popen(
            [sys.executable, "job.py", str(steps), params],
            cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(SCRIPTS)} | environment,
        )  # fmt: skip
        started.append(process)
        if wait:
            wait_for(process, "started")
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(process, text):
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the job ended without {text!r}")


def command(folder, name, script):
    """Put a command on the path that stands for one of Slurm's."""
    path = folder / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_job_works_and_keeps_the_token_to_itself(start, tmp_path):
    process = start(HF_TOKEN="secret")
    assert process.wait() == 0
    assert (tmp_path / "out.txt").read_text() == f"{process.pid} None"
    assert "done in" in (tmp_path / "logs/rule/a.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_between_two_steps(start, tmp_path, number):
    process = start(steps=600)
    sent = time.monotonic()
    process.send_signal(number)
    assert process.wait() == 143
    assert time.monotonic() - sent < 5
    assert f"rule a: stopped by {number.name}: saved at" in process.stdout.read()
    assert not (tmp_path / "out.txt").exists()


def test_a_second_copy_waits_and_leaves_the_firsts_output(start, tmp_path):
    first = start(steps=10)
    second = start(steps=10, wait=False)
    wait_for(second, "another copy runs")
    assert first.wait() == second.wait() == 0
    assert "the other copy finished this job" in second.stdout.read()
    assert (tmp_path / "out.txt").read_text().startswith(f"{first.pid} ")


def test_a_second_copy_takes_over_from_a_killed_one(start, tmp_path):
    first = start(steps=600)
    second = start(wait=False)
    wait_for(second, "another copy runs")
    first.kill()
    assert second.wait() == 0
    assert (tmp_path / "out.txt").read_text().startswith(f"{second.pid} ")


@pytest.mark.parametrize("changed", ["params", "input"])
def test_a_copy_of_other_settings_does_its_own_work(start, tmp_path, changed):
    first = start(steps=10)
    if changed == "input":
        (tmp_path / "in.txt").write_text("more")
    second = start(params="2" if changed == "params" else "1", wait=False)
    wait_for(second, "another copy runs")
    assert first.wait() == second.wait() == 0
    assert (tmp_path / "out.txt").read_text().startswith(f"{second.pid} ")


def test_a_waiting_copy_can_be_stopped(start):
    start(steps=600)
    second = start(wait=False)
    wait_for(second, "another copy runs")
    second.terminate()
    assert second.wait() == 143


def test_a_job_queues_itself_again_before_its_time_is_over(start, tmp_path):
    command(tmp_path, "squeue", "echo 0:17")
    command(tmp_path, "scontrol", 'echo "$@" > asked.txt')
    process = start(steps=600, wait=False, SLURM_JOB_ID="42")
    wait_for(process, "stopped by the time limit: saved at step")
    wait_for(process, "queued again")
    assert (tmp_path / "asked.txt").read_text() == "requeue 42\n"
    process.terminate()
    time.sleep(0.3)
    assert (
        process.poll() is None
    )  # it waits for Slurm to end it, so that nothing retries


def test_a_job_that_slurm_does_not_queue_again_says_so(start, tmp_path):
    command(tmp_path, "squeue", "echo 0:17")
    command(tmp_path, "scontrol", "echo Requested operation is disabled >&2; exit 1")
    process = start(steps=600, wait=False, SLURM_JOB_ID="42")
    wait_for(process, "did not queue the job again (Requested operation is disabled)")


def test_a_job_without_progress_is_not_queued_again(start, tmp_path):
    command(tmp_path, "squeue", "echo 0:15")
    command(tmp_path, "scontrol", "touch asked.txt")
    process = start(steps=600, wait=False, SLURM_JOB_ID="42")
    wait_for(process, "stopped by the time limit: saved at step 0")
    time.sleep(0.3)
    assert process.poll() is None
    assert not (tmp_path / "asked.txt").exists()


@pytest.mark.parametrize("answer", ["echo UNLIMITED", "echo INVALID", "exit 1"])
def test_without_a_time_limit_a_job_just_works(start, tmp_path, answer):
    command(tmp_path, "squeue", answer)
    process = start(SLURM_JOB_ID="42")
    assert process.wait() == 0
    log = (tmp_path / "logs/rule/a.log").read_text()
    assert "SLURM_JOB_ID=42" in log
    assert "left to the job" not in log
