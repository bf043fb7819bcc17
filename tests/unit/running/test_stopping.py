"""Requests to stop: by signals, and shortly before the time limit."""

import signal
import time

import pytest
from job_samples import command


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_between_two_steps(start, tmp_path, number):
    process = start(steps=600)
    sent = time.monotonic()
    process.send_signal(number)
    assert process.wait() == 143
    assert time.monotonic() - sent < 5
    assert f"rule a: stopped by {number.name}: saved at" in process.stdout.read()
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize("answer", ["echo UNLIMITED", "echo INVALID", "exit 1"])
def test_without_a_time_limit_a_job_just_works(start, tmp_path, answer):
    command(tmp_path, "squeue", answer)
    process = start(SLURM_JOB_ID="42")
    assert process.wait() == 0
    log = (tmp_path / "logs/rule/a.log").read_text()
    assert "SLURM_JOB_ID=42" in log
    assert "left to the job" not in log
