"""One copy of a job at a time, with jobs in processes of their own."""

import errno
import fcntl
import os
import socket
from types import SimpleNamespace

import pytest
from job_samples import wait_for

from prefdistill.errors import Interrupted
from prefdistill.running import lock
from prefdistill.running.lock import only_copy


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
    # A copy whose input was changed under its hands must not count as done.
    assert first.wait() == (1 if changed == "input" else 0)
    assert second.wait() == 0
    assert (tmp_path / "out.txt").read_text().startswith(f"{second.pid} ")


def test_a_waiting_copy_can_be_stopped(start):
    start(steps=600)
    second = start(wait=False)
    wait_for(second, "another copy runs")
    second.terminate()
    assert second.wait() == 143


@pytest.fixture
def job(tmp_path):
    """A job with one input and one output, which is not there yet."""
    (tmp_path / "in.txt").write_text("one")
    return SimpleNamespace(
        log=[tmp_path / "a.log"],
        input=[tmp_path / "in.txt"],
        output=[tmp_path / "out.txt"],
        params={"x": 1},
    )


def test_the_lock_names_its_holder_and_is_free_afterwards(job, tmp_path):
    for _ in range(2):
        with only_copy(job):
            text = (tmp_path / ".a.lock").read_text()
            assert text.startswith(f"{socket.gethostname()} {os.getpid()}\n")
            with (
                open(tmp_path / ".a.lock") as other,
                pytest.raises(BlockingIOError),
            ):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_lock_is_free_after_an_error(job):
    with pytest.raises(ValueError, match="one"), only_copy(job):
        raise ValueError("one")
    with only_copy(job):
        pass


def test_a_job_that_did_not_wait_works_though_its_output_is_there(job):
    job.output[0].touch()
    for _ in range(2):
        with only_copy(job):
            worked = True
    assert worked


def test_jobs_of_other_logs_do_not_meet(job, tmp_path):
    other = SimpleNamespace(**vars(job) | {"log": [tmp_path / "b.log"]})
    with only_copy(job) as one, only_copy(other) as two:
        assert one != two


def test_a_stop_ends_the_wait(job, monkeypatch):
    monkeypatch.setattr(lock, "stop_requested", lambda: True)
    with (
        only_copy(job),
        pytest.raises(Interrupted, match="nothing done yet") as stop,
        only_copy(job),
    ):
        raise AssertionError("two copies at once")
    assert not stop.value.progressed


def test_without_locks_of_the_file_system_a_job_goes_on(job, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with only_copy(job):
        job.output[0].touch()
    assert "its file system has no locks (No locks available)" in caplog.text


def test_a_full_disk_is_left_to_the_jobs_own_files(job, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock.os, "pwrite", full)
    with only_copy(job):
        job.output[0].touch()
    assert job.output[0].exists()
