"""What a dead driver has left is cleaned up, unless it may live."""

import os
import socket

import pytest
from dead_driver import lock_folder, locks_of

from prefdistill.errors import UserError
from prefdistill.pipeline.driver import recover


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
        ({"host": "node7", "pid": 5}, r"on node7 \(pid 5, .* cannot ask; .*: make unl"),
        ({"host": "node7", "slurm_job": "41"}, "Slurm job 41, .*: make unlock"),
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
    root = lock_folder(tmp_path, host="node7", slurm_job="41")
    recover(root)
    assert not locks_of(root)


def test_a_driver_in_this_slurm_job_before_its_requeue_is_dead(
    tmp_path, slurm, monkeypatch
):
    (slurm / "queue").write_text("41|x|/\n")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    root = lock_folder(tmp_path, host="node7", slurm_job="41")
    recover(root)
    assert not locks_of(root)


def test_a_queue_that_does_not_answer_proves_nothing(tmp_path, slurm):
    (slurm / "squeue").write_text("#!/bin/sh\nexit 1\n")
    root = lock_folder(tmp_path, host="node7", slurm_job="41")
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
