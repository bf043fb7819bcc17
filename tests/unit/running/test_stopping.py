"""Requests to stop: by signals, and shortly before the time limit."""

import math
import os
import signal
import time

import pytest
from job_samples import command

from prefdistill.running import stopping
from prefdistill.running.stopping import (
    TERMINAL_SIGNALS,
    TIME_LIMIT,
    can_save,
    request_stop,
    stop_on,
    stop_reason,
    stop_requested,
    watch_time_limit,
)


@pytest.mark.parametrize("number", [*TERMINAL_SIGNALS, signal.SIGUSR1])
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


@pytest.fixture
def fresh(monkeypatch):
    """A process that nothing has asked to stop; signal handlers are put back."""
    monkeypatch.setattr(stopping._Stop, "reason", None)
    monkeypatch.setattr(stopping._Stop, "deadline", math.inf)
    former = {
        number: signal.getsignal(number)
        for number in (*TERMINAL_SIGNALS, signal.SIGUSR1)
    }
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("fresh")
def test_the_first_reason_is_kept():
    assert not stop_requested()
    assert stop_reason() is None
    request_stop("one")
    request_stop("two")
    assert stop_requested()
    assert stop_reason() == "one"


@pytest.mark.usefixtures("fresh")
def test_a_signal_is_the_reason_by_its_name():
    stop_on(signal.SIGTERM, signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop_requested()
    assert stop_reason() == "SIGUSR1"


@pytest.mark.usefixtures("fresh")
def test_a_second_interrupt_is_not_caught():
    stop_on(signal.SIGINT, signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert stop_reason() == "SIGINT"
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # caught however often it comes
    assert stop_reason() == "SIGINT"


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("left_s", "spare_s"),
    [(60, 15), (300, 15), (1000, 50), (6000, 300), (86_400, 300), (10, 15)],
)
def test_a_twentieth_of_the_time_is_kept_to_save(monkeypatch, left_s, spare_s):
    now = [1000.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(stopping, "seconds_left", lambda: left_s)
    watch_time_limit()
    now[0] += left_s - spare_s - 0.01
    assert not stop_requested()
    now[0] += 0.02
    assert stop_requested()
    assert stop_reason() == TIME_LIMIT


@pytest.mark.usefixtures("fresh")
def test_a_signal_before_the_time_limit_stays_the_reason(monkeypatch):
    monkeypatch.setattr(stopping, "seconds_left", lambda: 0)
    watch_time_limit()
    request_stop("SIGTERM")
    assert stop_requested()
    assert stop_reason() == "SIGTERM"


@pytest.mark.usefixtures("fresh")
def test_without_a_limit_there_is_no_deadline(monkeypatch):
    monkeypatch.setattr(stopping, "seconds_left", lambda: None)
    watch_time_limit()
    monkeypatch.setattr(stopping.time, "monotonic", lambda: 1e12)
    assert not stop_requested()


@pytest.mark.usefixtures("fresh")
def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop_on(*TERMINAL_SIGNALS)
    os.kill(os.getpid(), signal.SIGHUP)
    assert not stop_requested()


@pytest.mark.usefixtures("fresh")
def test_a_process_that_asks_can_save(monkeypatch):
    monkeypatch.setattr(stopping._Stop, "asked_for", False)
    assert not can_save()
    stop_requested()
    assert can_save()
