"""What a dead driver has left is cleaned up, unless it may live."""

import fcntl
import json
import os
import socket

import pytest
from dead_driver import lock_folder, locks_of

from prefdistill.errors import UserError
from prefdistill.pipeline.driver import LOCK, OWNER, clean, recover, write_owner
from prefdistill.running.ties import DRIVER
from prefdistill.storage.hosts import BOOT_ID, PID_SPACE


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


def test_a_living_process_with_a_dead_drivers_id_is_no_driver(tmp_path):
    root = lock_folder(tmp_path, pid=os.getppid())
    recover(root)
    assert not locks_of(root)


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        ({}, f"nothing says by whom; .* on {socket.gethostname()} .*: make unlock"),
        (
            {"host": "node7", "boot": "b", "pid": 5},
            r"on node7 \(pid 5, .* cannot ask; .*: make unl",
        ),
        (
            {"host": "node7", "boot": "b", "slurm_job": "41"},
            "Slurm job 41, .*: make unlock",
        ),
    ],
)
def test_a_lock_that_nobody_can_tell_to_be_stale_is_left(
    owner, message, tmp_path, slurm
):
    (slurm / "queue").write_text("41|x|/\n")
    root = lock_folder(tmp_path, **owner)
    with pytest.raises(UserError, match=message) as error:
        recover(root)
    assert "\n" not in str(error.value)
    assert locks_of(root)


def test_a_driver_in_a_slurm_job_that_has_ended_is_dead(tmp_path, slurm):
    (slurm / "queue").write_text("411|x|/\n")
    root = lock_folder(tmp_path, host="node7", boot="b", slurm_job="41")
    recover(root)
    assert not locks_of(root)


def test_a_driver_in_this_slurm_job_before_its_requeue_is_dead(
    tmp_path, slurm, monkeypatch
):
    (slurm / "queue").write_text("41|x|/\n")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    root = lock_folder(tmp_path, host="node7", boot="b", slurm_job="41")
    recover(root)
    assert not locks_of(root)


def test_a_queue_that_does_not_answer_proves_nothing(tmp_path, slurm):
    (slurm / "squeue").write_text("#!/bin/sh\nexit 1\n")
    root = lock_folder(tmp_path, host="node7", boot="b", slurm_job="41")
    with pytest.raises(UserError, match="make unlock"):
        recover(root)


def test_jobs_of_a_dead_driver_are_cancelled_and_no_others(tmp_path, slurm, capsys):
    root = lock_folder(tmp_path, pid=1)
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


def test_jobs_that_do_not_end_stop_the_command(tmp_path, slurm, monkeypatch):
    monkeypatch.setattr("prefdistill.pipeline.driver.SLURM_PATIENCE_S", 0)
    (slurm / "scancel").write_text("#!/bin/sh\n")
    root = lock_folder(tmp_path, pid=1)
    (slurm / "queue").write_text(f"7|rule_evaluate|{root}\n")
    with pytest.raises(UserError, match="Slurm jobs 7 of a dead driver do not end"):
        recover(root)
    assert locks_of(root)


def test_a_driver_of_this_machines_former_boot_is_dead(tmp_path, monkeypatch):
    monkeypatch.setattr("prefdistill.pipeline.driver.MACHINE_ID", "here 0123")
    root = lock_folder(tmp_path, boot="former", machine="here 0123")
    recover(root)
    assert not locks_of(root)


def test_another_machine_of_this_name_cannot_be_asked(tmp_path):
    root = lock_folder(tmp_path, boot="other", machine="other")
    with pytest.raises(UserError, match=r"cannot ask; .*: make unlock"):
        recover(root)


SOUND = {"host": "a", "started": "b", "pid": 5, "boot": BOOT_ID}
DAMAGED = {
    "empty": b"",
    "cut": b'{"host": "vm", "pi',
    "no object": b"[1, 2]",
    "null": b"null",
    "not text": b"\xff\xfe{}",
    "deep": b"[" * 100_000,
    "foreign": b'{"name": "x"}',
    **{
        f"{key} is {value!r}": json.dumps(SOUND | {key: value}).encode()
        for key in ("host", "started", "boot", "slurm_job", "token")
        for value in (7, [], "two\nlines", "\x1b[2J")
    },
    **{
        f"pid is {value!r}": json.dumps(SOUND | {"pid": value}).encode()
        for value in (None, "5", -1, 0, 1.5, [])
    },
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_record_is_one_line(what, tmp_path):
    root = lock_folder(tmp_path)
    (root / OWNER).write_bytes(DAMAGED[what])
    with pytest.raises(
        UserError, match=r"nothing says by whom; .*: make unlock"
    ) as error:
        recover(root)
    assert str(error.value).isprintable()
    (root / ".snakemake/locks/0.output.lock").unlink()
    recover(root)  # without Snakemake's lock the record is not needed
    assert json.loads((root / OWNER).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("how", ["folder", "link", "pipe"])
def test_something_else_in_the_locks_place_is_one_line(how, tmp_path):
    place = tmp_path / LOCK
    place.parent.mkdir()
    make = {"folder": os.mkdir, "pipe": os.mkfifo}
    make.get(how, lambda path: os.symlink("/dev/null", path))(place)
    for command in (recover, lambda root: clean(["-d", str(root)], "clean")):
        with pytest.raises(UserError, match=r"not a lock file but .*; remove it"):
            command(tmp_path)


@pytest.fixture
def token(monkeypatch):
    """Function that records this process as a driver, and returns its jobs' token."""
    monkeypatch.setenv(DRIVER, "")

    def token(root, **options):
        (root / ".snakemake").mkdir(exist_ok=True)
        write_owner(root, **options)
        record = json.loads((root / OWNER).read_text())
        assert json.loads(os.environ[DRIVER])[:3] == [
            *(record["token"], PID_SPACE, os.getpid())
        ]
        return record["token"]

    return token


def test_only_a_driver_that_may_live_shares_its_token(tmp_path, token):
    first = token(tmp_path)
    assert token(tmp_path) == first  # this process, which lives
    assert token(tmp_path, alone=True) != first
    for owner, same in (
        ({"pid": 2**22 + 1}, False),  # no system has such a process
        ({"pid": 2**22 + 1, "space": "elsewhere"}, True),
        ({"token": None}, False),
    ):
        lock_folder(tmp_path, **owner)
        assert (token(tmp_path) == "a1") == same


def test_more_facts_are_recorded(tmp_path, token):
    token(tmp_path, code="abc")
    assert json.loads((tmp_path / OWNER).read_text())["code"] == "abc"


def fill(root):
    for name in ("results/a", "logs/train", "scratch/b", ".snakemake"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "results/a/out.txt").write_text("x")
    (root / "mine.csv").write_text("mine")
    return root


def test_clean_removes_what_runs_made_and_nothing_else(tmp_path, slurm):
    (slurm / "queue").touch()
    elsewhere = tmp_path / "elsewhere"
    root = tmp_path / "run"
    for _ in range(2):  # also where there is nothing
        root.mkdir(exist_ok=True)
        clean(["-d", str(root)], "clean")
        fill(root)
    (root / "scratch/b").rmdir()
    (root / "scratch").rmdir()
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (root / "scratch").symlink_to(elsewhere)
    clean(["-d", str(root)], "clean")
    assert [path.name for path in root.iterdir()] == ["mine.csv"]
    assert (elsewhere / "kept").exists()


def refusal(root, monkeypatch):
    monkeypatch.setattr("prefdistill.pipeline.driver.PATIENCE_S", 0)
    with pytest.raises(UserError) as error:
        clean(["-d", str(root)], "clean")
    assert "\n" not in str(error.value)
    assert (root / "results/a/out.txt").exists()
    return str(error.value)


def test_clean_leaves_a_folder_whose_driver_lives(tmp_path, slurm, monkeypatch):
    lock_folder(fill(tmp_path), pid=77)
    with open(tmp_path / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert "(pid 77, since" in refusal(tmp_path, monkeypatch)


def test_clean_leaves_a_folder_whose_job_lives(tmp_path, slurm, monkeypatch):
    (slurm / "queue").touch()
    with open(fill(tmp_path) / "logs/train/.llama.lock", "w+") as lock:
        lock.write("node7 41\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = refusal(tmp_path, monkeypatch)
    assert "job train llama (host and pid: node7 41)" in said


def test_clean_leaves_a_folder_with_jobs_in_the_queue(tmp_path, slurm, monkeypatch):
    (slurm / "queue").write_text(f"7|rule_evaluate|{fill(tmp_path)}\n8|x|/\n")
    assert "is in use: Slurm job 7; " in refusal(tmp_path, monkeypatch)


def test_clean_leaves_a_folder_whose_driver_cannot_be_asked(
    tmp_path, slurm, monkeypatch
):
    lock_folder(fill(tmp_path), host="node7", boot="b")
    assert "on node7 (pid 1" in refusal(tmp_path, monkeypatch)
