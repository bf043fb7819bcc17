"""A job of two worker processes: how it stops, fails and dies."""

import os
import signal
import sys
import time

import pytest
from job_samples import wait_for
from process_samples import TIMEOUT_S, end, start

from prefdistill.running import workers
from prefdistill.running.workers import (
    RUN_FOLDER,
    STOPPED,
    Outcome,
    is_worker,
    n_workers,
    report,
    run_workers,
    worker_rank,
)


def test_a_signal_to_the_launcher_saves_and_the_job_goes_on(tmp_path):
    for number in (signal.SIGTERM, signal.SIGUSR1):
        process = start(tmp_path, "loop", 10_000)
        wait_for(process, "at work")
        process.send_signal(number)
        status, output = end(process)
        assert status == 143, output
        assert f"stopped by {number.name}: saved at step" in output
    n_done = int((tmp_path / "state.txt").read_text())
    status, output = end(start(tmp_path, "loop", n_done + 2))
    assert status == 0, output
    assert (tmp_path / "done.txt").read_text() == f"from {n_done}"


def test_the_launchers_clock_queues_the_job_again(tmp_path):
    for name, script in {"squeue": "echo 0:25", "scontrol": 'echo "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    process = start(tmp_path, "loop", 10_000, SLURM_JOB_ID="42", PATH=path)
    try:
        wait_for(process, "stopped by the time limit: saved at step")
        wait_for(process, "queued again")
    finally:
        process.kill()
        process.wait()


def test_a_worker_that_dies_ends_the_job_in_one_line(tmp_path):
    status, output = end(start(tmp_path, "die"))
    assert status == 1
    lines = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "process 1 of 2 died (SIGKILL)" in lines[0]


def test_one_workers_error_is_said_once(tmp_path):
    status, output = end(start(tmp_path, "refuse"))
    assert status == 1
    assert output.count("error: row id 7: no good; do better (log: ") == 1
    assert "Traceback" not in output


def test_workers_save_when_their_launcher_is_killed(tmp_path):
    process = start(tmp_path, "loop", 10_000)
    wait_for(process, "at work")
    process.kill()
    process.wait()
    deadline = time.monotonic() + TIMEOUT_S
    while not (tmp_path / "state.txt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.stdout.close()


def act_as_worker(monkeypatch, folder, rank, count=2):
    """Set the environment variables that a worker gets."""
    monkeypatch.setenv(RUN_FOLDER, str(folder))
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(count))


def test_a_worker_knows_its_number(monkeypatch, tmp_path):
    monkeypatch.delenv(RUN_FOLDER, raising=False)
    assert not is_worker()
    act_as_worker(monkeypatch, tmp_path, 1, 3)
    assert is_worker()
    assert (worker_rank(), n_workers()) == (1, 3)


STOP = Outcome("stopped", "saved at step 3", progressed=True)
REFUSAL = Outcome("refused", "row id 7: no good")
FAILURE = Outcome("failed", "ValueError: connection reset")


@pytest.mark.parametrize(
    ("statuses", "reports", "kind", "text"),
    [
        ([STOPPED, STOPPED], {0: STOP, 1: STOP}, "stopped", "saved at step 3"),
        ([1, 1], {0: FAILURE, 1: REFUSAL}, "refused", "row id 7: no good"),
        ([1, -9], {0: FAILURE}, "died", "process 1 of 2 died (SIGKILL)"),
        ([None, 3], {}, "died", "process 1 of 2 died (status 3)"),
        ([STOPPED, 1], {0: STOP, 1: FAILURE}, "stopped", "saved at step 3"),
        ([1, 0], {0: FAILURE}, "failed", "connection reset"),
        ([-15, 0], {}, "stopped", "nothing done yet"),
        ([-15, 1], {1: REFUSAL}, "refused", "row id 7"),
    ],
)
def test_one_outcome_explains_the_others(
    monkeypatch, tmp_path, statuses, reports, kind, text
):
    for rank, outcome in reports.items():
        act_as_worker(monkeypatch, tmp_path, rank)
        report(outcome)
    found = workers._explain(statuses, tmp_path)
    assert found.kind == kind
    assert text in found.text
    assert found.progressed == (found == STOP)


def test_of_two_failures_the_earliest_counts(monkeypatch, tmp_path):
    for rank, text in ((1, "cause"), (0, "consequence")):
        act_as_worker(monkeypatch, tmp_path, rank)
        report(Outcome("failed", text))
    os.utime(tmp_path / "outcome-1.json", (1, 1))
    assert workers._explain([1, 1], tmp_path).text == "cause"


def test_workers_that_finished_need_no_explanation(tmp_path):
    assert workers._explain([0, 0], tmp_path) is None


@pytest.fixture
def run(monkeypatch):
    """Function that runs a script's text as workers, as if it were this process's."""

    def run(script, count=2, stop_requested=lambda: False):
        arguments = [sys.executable, "-c", script]
        monkeypatch.setattr(workers.sys, "orig_argv", arguments)
        with open(os.devnull) as lock:
            return run_workers(count, lock.fileno(), stop_requested)

    return run


def test_each_worker_has_its_number_and_the_same_folder(run, tmp_path):
    script = f"""
import os, pathlib
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "{RUN_FOLDER}")
text = " ".join(os.environ[name] for name in names)
pathlib.Path({str(tmp_path)!r}, os.environ["RANK"]).write_text(text)
"""
    assert run(script, 3) is None
    found = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [each[:3] for each in found] == [[str(n), str(n), "3"] for n in range(3)]
    (folder,) = {each[3] for each in found}
    assert not os.path.exists(folder)


def test_a_worker_that_waits_for_a_dead_one_is_ended(run, monkeypatch):
    monkeypatch.setattr(workers, "GRACE_S", 0.3)
    started = time.monotonic()
    outcome = run("""
import os, time
if os.environ["RANK"] == "1":
    os._exit(7)
time.sleep(100)
""")
    assert outcome.text.startswith("process 1 of 2 died (status 7)")
    assert time.monotonic() - started < 30


def test_a_request_to_stop_is_passed_on_once(run, tmp_path):
    script = f"""
import pathlib, signal, sys, time
def on_signal(*_):
    with open({str(tmp_path / "signals")!r}, "a") as handle:
        handle.write("x")
signal.signal(signal.SIGTERM, on_signal)
pathlib.Path({str(tmp_path / "ready")!r}).touch()
while not pathlib.Path({str(tmp_path / "signals")!r}).exists():
    time.sleep(0.02)
time.sleep(0.5)
sys.exit({STOPPED})
"""
    outcome = run(script, 1, (tmp_path / "ready").exists)
    assert (tmp_path / "signals").read_text() == "x"
    assert outcome.kind == "died"  # it has left no report
