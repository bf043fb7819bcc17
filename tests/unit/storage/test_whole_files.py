import os
import time

import pytest

from prefdistill.errors import DamagedFile
from prefdistill.storage.whole_files import (
    atomic_path,
    naming,
    reading,
    temporary_folder,
    write_text,
)


def leave_behind(folder, host, process, age_s=0.0):
    """What a killed job leaves: a temporary folder with half a file."""
    left = folder / f".model.safetensors.{host}.{process}.0123abcd.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    then = time.time() - age_s
    for path in (left / "model.safetensors", left):
        os.utime(path, (then, then))
    return left


@pytest.fixture
def host(tmp_path):
    """This host, as it stands in the names of temporary folders."""
    with temporary_folder(tmp_path, "x") as folder:
        return folder.name.split(".")[2]


@pytest.fixture
def dead_process():
    """The number of a process that has ended."""
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    return child


DAY_S = 24 * 3600


@pytest.mark.parametrize("name", ["model.safetensors", "other.json"])
def test_what_a_dead_process_left_is_removed_at_the_next_write(
    name, tmp_path, host, dead_process
):
    left = leave_behind(tmp_path, host, dead_process)
    write_text(tmp_path / name, "")
    assert not left.exists()


def test_what_may_be_in_use_stays(tmp_path, host):
    kept = [
        leave_behind(tmp_path, host, os.getpid(), 2 * DAY_S),
        leave_behind(tmp_path, host, os.getppid()),
        leave_behind(tmp_path, "elsewhere", 1, DAY_S - 600),
    ]
    mine = tmp_path / ".mine.tmp"
    mine.touch()
    write_text(tmp_path / "model.safetensors", "")
    assert all(path.exists() for path in (*kept, mine))


def test_what_another_host_left_is_removed_after_a_day(tmp_path):
    left = leave_behind(tmp_path, "elsewhere", 1, DAY_S + 600)
    written_to = leave_behind(tmp_path, "elsewhere", 2, DAY_S + 600)
    os.utime(written_to / "model.safetensors")
    write_text(tmp_path / "model.safetensors", "")
    assert not left.exists()
    assert written_to.exists()


def test_writers_of_one_target_do_not_meet(tmp_path):
    path = tmp_path / "x.json"
    with atomic_path(path) as first, atomic_path(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer one ends last
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_failing_body_leaves_the_former_file(tmp_path):
    path = tmp_path / "x.json"
    write_text(path, "former")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new" * 10_000 + "\ud800")
    assert path.read_text() == "former"
    assert os.listdir(tmp_path) == ["x.json"]


def test_files_get_the_usual_permissions(tmp_path):
    usual = tmp_path / "usual"
    usual.touch()
    path = tmp_path / "x.safetensors"
    with atomic_path(path) as temporary:
        temporary.touch(0o600)
    assert path.stat().st_mode == usual.stat().st_mode


def test_an_error_of_the_system_gets_a_path(tmp_path):
    with pytest.raises(OSError, match="space") as caught, naming("a/b"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == "a/b"
    with pytest.raises(OSError, match="space") as caught, naming("a/b"):
        raise ValueError("I/O error: No space left on device (os error 28)")
    assert (caught.value.errno, caught.value.filename) == (28, "a/b")
    with pytest.raises(OSError, match="x") as caught, naming("a/b"):
        raise OSError(28, "No space left on device", "x")
    assert caught.value.filename == "x"


def test_a_damaged_file_is_one_line(tmp_path):
    with pytest.raises(DamagedFile) as caught, reading("a/b", "whole JSON"):
        raise ValueError("line one\nline two")
    assert str(caught.value) == (
        "a/b: not whole JSON (line one line two); copy or fetch it again"
    )
    with pytest.raises(PermissionError), reading("a/b", "whole JSON"):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(MemoryError), reading("a/b", "whole JSON"):
        raise MemoryError
