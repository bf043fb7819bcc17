"""A killed driver is cleared up after, a live one is left alone."""

import fcntl
import json
import os
import signal
import subprocess
import time

import pytest
from dead_driver import lock_folder, locks_of
from running import ROOT, driver_command, snakemake, snakemake_command

from prefdistill.errors import UserError
from prefdistill.pipeline.driver import LOCK, OWNER, recover

TARGET = "results/data/clean.parquet"


def drive(directory, *arguments):
    """Start `make run`'s own command, in a session of its own."""
    return subprocess.Popen(
        driver_command(directory, *arguments),
        cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def owner_of(directory):
    return json.loads((directory / OWNER).read_text())


def is_locked_by(pid, directory):
    return (
        (directory / OWNER).exists()
        and owner_of(directory)["pid"] == pid
        and bool(locks_of(directory))
    )


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_one_command_recovers_from_a_driver_killed_three_times(tmp_path):
    for _ in range(3):
        driver = drive(tmp_path, TARGET)
        wait_for(lambda pid=driver.pid: is_locked_by(pid, tmp_path))
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        assert locks_of(tmp_path)
    driver = drive(tmp_path, TARGET)
    messages = driver.communicate()[1]
    assert driver.returncode == 0, messages
    assert "unlocked: a driver on" in messages
    assert (tmp_path / TARGET).exists()
    assert not locks_of(tmp_path)


def test_the_lock_of_a_live_driver_is_never_taken(tmp_path):
    first = drive(tmp_path, TARGET)
    try:
        wait_for(lambda: locks_of(tmp_path))
        first.send_signal(signal.SIGSTOP)
        second = drive(tmp_path, TARGET)
        messages = second.communicate()[1]
        assert second.returncode == 1
        assert len(messages.splitlines()) == 1
        assert f"(pid {first.pid}, since" in messages
        assert locks_of(tmp_path)
        first.send_signal(signal.SIGCONT)
        assert first.wait() == 0
    finally:
        first.kill()
        first.communicate()
    assert (tmp_path / TARGET).exists()


def test_snakemake_itself_leaves_a_record_that_the_next_command_uses(tmp_path):
    driver = subprocess.Popen(
        snakemake_command(tmp_path, TARGET),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: is_locked_by(driver.pid, tmp_path))
    driver.send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match=rf"is in use: .*\(pid {driver.pid}, since"):
        recover(tmp_path)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert locks_of(tmp_path)
    recover(tmp_path)
    assert not locks_of(tmp_path)
    assert owner_of(tmp_path)["pid"] == os.getpid()


def test_a_jobs_own_snakemake_is_no_driver(tmp_path):
    """As the Slurm jobs start it: it would wait for ever for this lock."""
    (tmp_path / LOCK).parent.mkdir()
    with open(tmp_path / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        flags = ("--mode=remote", "--force", "--nolock", "--no-hooks")
        done = snakemake(tmp_path, *flags, "results/simulated/train.csv", timeout=60)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / OWNER).exists()


@pytest.mark.parametrize("flag", ["-n", "--dry-run", "-pn"])
def test_a_dry_run_changes_nothing(flag, tmp_path):
    lock_folder(tmp_path, pid=1)
    before = (tmp_path / OWNER).read_text()
    driver = drive(tmp_path, flag, TARGET)
    messages = driver.communicate()[1]
    assert driver.returncode == 0, messages
    assert "unlocked" not in messages
    assert (tmp_path / OWNER).read_text() == before
    assert locks_of(tmp_path)


def test_every_make_target_goes_through_the_driver():
    """It recovers where something is computed, and checks the configuration's files."""
    for target in ("run", "demo", "report", "plan"):
        done = subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True
        )
        assert "-m prefdistill run " in done.stdout, target
        assert (" --dry-run" in done.stdout) == (target == "plan")
