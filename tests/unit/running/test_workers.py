"""A job of two worker processes: how it stops, fails and dies."""

import os
import signal
import time

from job_samples import wait_for
from process_samples import TIMEOUT_S, end, start


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
