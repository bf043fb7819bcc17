"""A process is dead only where its id means the same process."""

import os
import subprocess
import sys

import pytest

from prefdistill.running.code_digests import SCRIPTS
from prefdistill.storage.hosts import BOOT_ID, PID_SPACE, has_ended
from prefdistill.storage.whole_files import _TEMPORARY_NAME


@pytest.fixture
def ended():
    """The id of a process that has ended and that its parent has not asked about."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    yield process.pid
    process.wait()


def test_only_a_process_of_this_pid_space_is_known_to_have_ended(ended):
    assert has_ended(PID_SPACE, ended)
    assert not has_ended(f"{PID_SPACE}x", ended)
    assert not has_ended(PID_SPACE, os.getpid())
    assert not has_ended(PID_SPACE, 1)  # of another user, or this container's first


def test_the_name_of_a_pid_space_fits_into_temporary_names():
    assert _TEMPORARY_NAME.fullmatch(f".a.{PID_SPACE}.1.0123abcd.tmp")
    assert BOOT_ID


def test_containers_of_one_host_name_are_told_apart():
    """As with a shared network: the same host name, other process ids."""
    code = "from prefdistill.storage.hosts import *; print(BOOT_ID, PID_SPACE)"
    there = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--pid", "--fork",
         sys.executable, "-c", code],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(SCRIPTS)},
    )  # fmt: skip
    if there.returncode:
        pytest.skip(f"no namespaces here: {there.stderr}")
    boot_id, pid_space = there.stdout.split()
    assert boot_id == BOOT_ID
    assert pid_space != PID_SPACE
    assert pid_space.rpartition("-")[0] == PID_SPACE.rpartition("-")[0]
