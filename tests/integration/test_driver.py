"""A killed driver is cleared up after, a live one is left alone."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import time

import pytest
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


def locks_of(directory):
    return list((directory / ".snakemake/locks").glob("*"))


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


@pytest.fixture
def locked(tmp_path):
    """A function that makes a folder look locked by an owner."""

    def lock(**owner):
        locks = tmp_path / ".snakemake/locks"
        locks.mkdir(parents=True, exist_ok=True)
        (locks / "0.output.lock").write_text("results/submission.csv\n")
        record = {"host": socket.gethostname(), "pid": 1, "started": "2026-01-01"}
        if owner:
            (tmp_path / OWNER).write_text(
                json.dumps(record | {"slurm_job": None} | owner)
            )
        return tmp_path

    return lock


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with `squeue` and `scancel`; the queue is a file that a test writes."""
    folder = tmp_path / "bin"
    folder.mkdir()
    queue = folder / "queue"
    commands = {
        "squeue": f'case "$*" in *%Z*) cat {queue};; *) cut -d"|" -f1 {queue};; esac',
        "scancel": f'echo "$@" > {folder}/cancelled; for j; do sed -i "/^$j|/d" '
        f"{queue}; done",
    }
    for name, body in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return folder


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
def test_a_dry_run_changes_nothing(flag, locked):
    root = locked(pid=1)
    before = (root / OWNER).read_text()
    driver = drive(root, flag, TARGET)
    messages = driver.communicate()[1]
    assert driver.returncode == 0, messages
    assert "unlocked" not in messages
    assert (root / OWNER).read_text() == before
    assert locks_of(root)


def test_a_living_process_with_a_dead_drivers_id_is_no_driver(locked):
    root = locked(pid=os.getppid())
    recover(root)
    assert not locks_of(root)


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        ({}, f"nothing says by whom; .* on {socket.gethostname()} .*: make unlock"),
        ({"host": "node7", "pid": 5}, r"on node7 \(pid 5, .* cannot ask; .*: make unl"),
        ({"host": "node7", "slurm_job": "41"}, "Slurm job 41, .*: make unlock"),
    ],
)
def test_a_lock_that_nobody_can_tell_to_be_stale_is_left(owner, message, locked, slurm):
    (slurm / "queue").write_text("41|x|/\n")
    root = locked(**owner)
    with pytest.raises(UserError, match=message) as error:
        recover(root)
    assert "\n" not in str(error.value)
    assert locks_of(root)


def test_a_driver_in_a_slurm_job_that_has_ended_is_dead(locked, slurm):
    (slurm / "queue").write_text("411|x|/\n")
    root = locked(host="node7", slurm_job="41")
    recover(root)
    assert not locks_of(root)


def test_a_driver_in_this_slurm_job_before_its_requeue_is_dead(
    locked, slurm, monkeypatch
):
    (slurm / "queue").write_text("41|x|/\n")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    root = locked(host="node7", slurm_job="41")
    recover(root)
    assert not locks_of(root)


def test_a_queue_that_does_not_answer_proves_nothing(locked, slurm):
    (slurm / "squeue").write_text("#!/bin/sh\nexit 1\n")
    root = locked(host="node7", slurm_job="41")
    with pytest.raises(UserError, match="make unlock"):
        recover(root)


def test_jobs_of_a_dead_driver_are_cancelled_and_no_others(locked, slurm, capsys):
    root = locked(pid=1)
    queue = [
        f"7|rule_train_teacher_wildcards_llama_0|{root}",
        f"8|rule_train_teacher_wildcards_llama_1|{root}-other",
        f"9|my own job|{root}",
    ]
    (slurm / "queue").write_text("\n".join(queue) + "\n")
    recover(root)
    assert (slurm / "cancelled").read_text() == "7\n"
    assert (slurm / "queue").read_text().splitlines() == queue[1:]
    assert "cancelling 1 Slurm jobs of the dead driver: 7" in capsys.readouterr().err


def test_without_a_lock_no_job_is_cancelled(tmp_path, slurm):
    (slurm / "queue").write_text(f"7|rule_evaluate|{tmp_path}\n")
    recover(tmp_path)
    assert not (slurm / "cancelled").exists()


def test_jobs_that_do_not_end_stop_the_command(locked, slurm, monkeypatch):
    monkeypatch.setattr("prefdistill.pipeline.driver.SLURM_PATIENCE_S", 0)
    (slurm / "scancel").write_text("#!/bin/sh\n")
    root = locked(pid=1)
    (slurm / "queue").write_text(f"7|rule_evaluate|{root}\n")
    with pytest.raises(UserError, match="Slurm jobs 7 of a dead driver do not end"):
        recover(root)
    assert locks_of(root)


def test_every_make_target_goes_through_the_driver():
    """It recovers where something is computed, and checks the configuration's files."""
    for target in ("run", "demo", "report", "plan"):
        done = subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True
        )
        assert "-m prefdistill run " in done.stdout, target
        assert (" --dry-run" in done.stdout) == (target == "plan")
