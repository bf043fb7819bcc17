"""A job that lost its driver, lock or folder stops and writes nothing; others go on."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from job_samples import wait_for

from prefdistill.errors import Interrupted
from prefdistill.running import stopping
from prefdistill.running.ties import DRIVER, OWNER, Ties, driver_tie, read_token
from prefdistill.storage.hosts import PID_SPACE
from prefdistill.storage.whole_files import guard_writes, write_text

PARENT = os.getppid()
OTHER_SPACE = f"{PID_SPACE}x"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Function that makes the ties of a job of a driver; it works in a run's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stopping._Stop, "reason", None)
    (tmp_path / "results").mkdir()
    (tmp_path / ".snakemake").mkdir()
    OWNER.write_text('{"token": "mine"}')

    def run(pid=PARENT, space=PID_SPACE, slurm_job=None, here=None):
        tie = json.dumps(["mine", space, pid, slurm_job])
        monkeypatch.setenv(DRIVER, tie)
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        if here is not None:
            monkeypatch.setenv("SLURM_JOB_ID", here)
        ties = Ties(["results/out.txt"])
        (tmp_path / "a.lock").touch()
        ties.keep(tmp_path / "a.lock")
        return ties

    yield run
    guard_writes(lambda path: None)


@pytest.fixture
def dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_job_with_all_its_ties_writes(run):
    guard_writes(run().check_write)
    write_text("results/out.txt", "done")
    assert stopping.stop_reason() is None


@pytest.mark.parametrize(
    "record", [None, "", "{", "[]", "{}", '{"token": 7}', '{"token": "mine"}', "\udc80"]
)
def test_a_record_that_names_no_other_driver_proves_nothing(run, record):
    ties = run()
    OWNER.unlink()
    if record is not None:
        OWNER.write_bytes(record.encode(errors="surrogateescape"))
    assert ties.lost_driver() is None


def test_without_a_driver_nothing_is_lost(run, monkeypatch):
    for text in (None, "", "{", "[1]", '["a", "b"]'):
        ties = run()
        monkeypatch.delenv(DRIVER)
        if text is not None:
            monkeypatch.setenv(DRIVER, text)
        ties = Ties(["results/out.txt"])
        OWNER.write_text('{"token": "other"}')
        assert ties.lost_driver() is None


@pytest.mark.parametrize(
    ("place", "lost"),
    [
        ({}, True),
        ({"slurm_job": "4", "here": "4"}, True),  # a driver in a job, beside this
        ({"space": OTHER_SPACE}, False),  # of another host or container
        ({"here": "4"}, False),  # a job on a cluster: its next driver stops it
        ({"slurm_job": "4", "here": "5"}, False),
    ],
)
def test_the_end_of_a_driver_counts_beside_it(run, dead, place, lost):
    assert run(**place).lost_driver() is None
    assert (run(pid=dead, **place).lost_driver() is not None) == lost


@pytest.mark.parametrize("place", [{}, {"space": OTHER_SPACE}, {"here": "4"}])
def test_a_new_token_stops_a_job_anywhere(run, place):
    ties = run(**place)
    OWNER.write_text('{"token": "another"}')
    assert read_token() == "another"
    assert "another driver" in ties.lost_driver()
    guard_writes(ties.check_write)
    with pytest.raises(Interrupted, match="not written"):
        write_text("results/out.txt", "late")
    write_text("scratch/state.txt", "saved")  # it holds its lock: it may save
    assert not os.path.exists("results/out.txt")


def remove(path):
    shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


@pytest.mark.parametrize("path", ["results", "a.lock"])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_lost_place_stops_every_write(run, path, replaced):
    ties = run()
    assert ties.lost_place() is None
    was_folder = os.path.isdir(path)
    os.rename(path, f"{path}.old") if replaced else remove(path)
    if replaced:
        os.mkdir(path) if was_folder else open(path, "w").close()
    assert ties.lost_place() == f"the loss of {path}"
    guard_writes(ties.check_write)
    for name in ("results/out.txt", "scratch/state.txt"):
        with pytest.raises(Interrupted, match="not written"):
            write_text(name, "late")
        assert not os.path.exists(name)


def orphan(start, tmp_path, steps=600):
    """Start a job of a driver that is this process."""
    (tmp_path / ".snakemake").mkdir(exist_ok=True)
    (tmp_path / OWNER).write_text('{"token": "mine"}')
    return start(steps=steps, **{DRIVER: driver_tie("mine", None)}, SLURM_JOB_ID="")


@pytest.mark.parametrize("what", ["token", "lock", "logs"])
def test_a_job_saves_within_seconds_of_a_loss(start, tmp_path, what):
    process = orphan(start, tmp_path)
    if what == "token":
        (tmp_path / OWNER).write_text('{"token": "other"}')
    else:
        remove(tmp_path / {"lock": "logs/rule/.a.lock", "logs": "logs"}[what])
    lost = time.monotonic()
    wait_for(process, ": saved at step")
    assert process.wait() == 143
    assert time.monotonic() - lost < 10
    assert not (tmp_path / "out.txt").exists()


BUSY = """
import sys, time, types
from prefdistill.running.job import guarded
job = types.SimpleNamespace(
    log=["logs/rule/a.log"], threads=1, input=[], output=["out.txt"], params={}
)
with guarded(job):
    print("started", flush=True)
    time.sleep(60)
    open("out.txt", "w").close()
"""


@pytest.mark.parametrize("how", ["a loss", "a signal"])
def test_a_job_that_cannot_save_ends_too(start, tmp_path, how):
    (tmp_path / "job.py").write_text(BUSY)
    process = start()
    began = time.monotonic()
    if how == "a loss":
        remove(tmp_path / "logs/rule/.a.lock")
    else:
        process.terminate()
    assert process.wait(timeout=30) == 143
    assert time.monotonic() - began < (5 if how == "a loss" else 20)
    assert not (tmp_path / "out.txt").exists()
