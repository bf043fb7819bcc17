"""Check that a full, read-only, forbidden or vanished disk gives one line, no harm."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prefdistill.running.job import guarded
from prefdistill.storage.checkpoints import Checkpoints
from prefdistill.storage.logits import Logits, read_logits, write_logits
from prefdistill.storage.records import write_json
from prefdistill.storage.whole_files import atomic_path, temporary_folder

INTACT = "and run the same command: earlier results are intact"
NOBODY = 65534


def stand_in(log):
    """Make what a job needs of a script's ``snakemake`` object."""
    return SimpleNamespace(log=[log], threads=1, input=[], output=[], params={})


def job(body, log, before=lambda: None):
    """Run a body as a job in a child; return its exit status and terminal output."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        status = 99
        try:
            os.dup2(send, 2)
            sys.stderr = open(2, "w")  # noqa: SIM115
            before()
            with guarded(stand_in(log)):
                body()
            status = 0
        except SystemExit as end:
            status = end.code
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(send)
    with open(receive) as pipe:
        terminal = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), terminal


def check_failure(outcome, path, reason):
    status, terminal = outcome
    assert status == 1, terminal
    lines = terminal.splitlines()
    assert len(lines) == 1, terminal
    assert lines[0].startswith(f"error: {path}: "), terminal
    assert reason in lines[0]
    assert INTACT in lines[0]


def scores(n_rows):
    rng = np.random.default_rng(0)
    ids = np.array([str(row) for row in range(n_rows)])
    logits = rng.normal(size=(n_rows, 2, 3)).astype(np.float32)
    return Logits(ids, np.full(n_rows, "dev"), logits, {"views": ["AB", "BA"]})


def small_files():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def save(folder, step, n_values):
    tensors = {"w": torch.full((n_values,), float(step))}
    Checkpoints(folder, "job").save(step, tensors, {})


@pytest.fixture
def disk(tmp_path):
    """Mount a file system of 256 KB; only root can."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_file_larger_than_allowed(tmp_path):
    path = tmp_path / "logits.npz"
    write_logits(path, scores(10))
    outcome = job(lambda: write_logits(path, scores(5000)), tmp_path / "l", small_files)
    check_failure(outcome, path, "ulimit -f")
    assert len(read_logits(path).ids) == 10
    names = {each.name for each in tmp_path.iterdir() if not each.name.startswith(".")}
    assert names == {"logits.npz", "l", "l.earlier.log"}


def test_a_checkpoint_larger_than_allowed(tmp_path):
    """Check an error that safetensors reports in the text of its own exception."""
    folder = tmp_path / "scratch"
    save(folder, 1, 10)
    outcome = job(lambda: save(folder, 2, 9000), tmp_path / "log", small_files)
    check_failure(outcome, folder / "job-step-000000002.safetensors", "ulimit -f")
    assert Checkpoints(folder, "job").load()[0] == 1


def test_a_full_disk(disk, tmp_path):
    path = disk / "results/logits.npz"
    write_logits(path, scores(100))
    outcome = job(lambda: write_logits(path, scores(50_000)), tmp_path / "log")
    check_failure(outcome, path, "no space left")
    assert len(read_logits(path).ids) == 100
    assert os.listdir(path.parent) == ["logits.npz"]
    assert job(lambda: write_logits(path, scores(200)), tmp_path / "log")[0] == 0
    assert len(read_logits(path).ids) == 200


def test_a_full_disk_that_also_holds_the_log(disk):
    def fill():
        with open(disk / "filler", "wb") as filler:
            filler.write(bytes(1 << 20))

    path = disk / "results/job-step-000000002.safetensors"
    save(path.parent, 1, 10)
    with pytest.raises(OSError, match="space"):
        fill()
    check_failure(
        job(lambda: save(path.parent, 2, 9000), disk / "log"), path, "no space left"
    )
    assert Checkpoints(path.parent, "job").load()[0] == 1


def test_a_read_only_disk(disk, tmp_path):
    path = disk / "results/weights.json"
    write_json(path, [1])
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    outcome = job(lambda: write_json(path, [2]), tmp_path / "log")
    check_failure(outcome, path.parent, "read-only")
    assert path.read_text() == "[\n  1\n]\n"


def test_a_disk_that_is_made_read_only_in_the_middle(disk, tmp_path):
    path = disk / "results/weights.json"

    def body():
        with atomic_path(path) as temporary:
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            temporary.write_text("{}")

    check_failure(job(body, tmp_path / "log"), path, "read-only")
    assert not path.exists()


def test_a_folder_of_another_user(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    folder.chmod(0o555)
    for parent in (tmp_path, *tmp_path.parents):  # pytest's own are for one user
        if not parent.stat().st_mode & 0o001:
            parent.chmod(0o755)
    log = tmp_path / "logs"
    log.mkdir()
    log.chmod(0o777)
    become = (lambda: os.setuid(NOBODY)) if not os.getuid() else (lambda: None)
    outcome = job(lambda: write_json(folder / "x.json", 1), log / "log", become)
    check_failure(outcome, folder, "permission denied")


def test_a_scratch_folder_that_vanishes(tmp_path):
    folder = tmp_path / "scratch"

    def body():
        with temporary_folder(folder) as inside:
            shutil.rmtree(folder)
            (inside / "model.safetensors").write_bytes(b"x")

    check_failure(job(body, tmp_path / "log"), folder, "not there, or no longer")


def test_a_scratch_link_that_leads_nowhere(tmp_path):
    (tmp_path / "scratch").symlink_to("/nowhere/user")
    folder = tmp_path / "scratch"
    outcome = job(lambda: save(folder, 1, 10), tmp_path / "log")
    check_failure(outcome, folder, "cannot be made a folder")


def test_other_errors_keep_their_kind_and_their_traceback(tmp_path):
    def body():
        raise KeyError("no such\nrow")

    status, terminal = job(body, tmp_path / "log")
    assert status == 1
    assert terminal == f"error: KeyError: 'no such\\nrow' (log: {tmp_path / 'log'})\n"
    assert "Traceback" in (tmp_path / "log").read_text()
