"""The errors that end a job with one line."""

import errno
import os
import shutil

import pytest

from prefdistill.errors import DamagedFile, Interrupted, UserError, disk_fault


def test_a_damaged_file_names_its_path_fault_and_remedy():
    error = DamagedFile("a/b", "not whole JSON")
    assert str(error) == "a/b: not whole JSON; copy or fetch it again"
    assert (error.path, error.what) == ("a/b", "not whole JSON")
    assert isinstance(error, UserError)
    assert str(DamagedFile("a", "cut", "train again")) == "a: cut; train again"


@pytest.mark.parametrize("progressed", [True, False])
def test_an_interruption_keeps_whether_it_progressed(progressed):
    stop = Interrupted("saved at step 3", progressed=progressed)
    assert (str(stop), stop.progressed) == ("saved at step 3", progressed)
    assert not isinstance(stop, UserError)  # it is no mistake of the user


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "the quota"),
        (errno.EFBIG, "larger than files may be here"),
        (errno.EROFS, "is read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EPERM, "not permitted"),
        (errno.EIO, "its disk or server failed"),
        (errno.ESTALE, "its server no longer knows it"),
        (errno.ENOENT, "not there"),
        (errno.ENOTDIR, "a part of its path is not a folder"),
        (errno.EEXIST, "cannot be made a folder"),
    ],
)
def test_a_disk_fault_is_one_line_with_a_remedy(code, fault):
    line = disk_fault(OSError(code, os.strerror(code), "a/b"))
    assert line.startswith("a/b: ")
    assert fault in line
    assert line.endswith("and run the same command: earlier results are intact")
    assert "\n" not in line


def test_faults_of_real_calls_name_the_path(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for call in (
        lambda: (tmp_path / "none").read_text(),
        lambda: (file / "x").read_text(),
        lambda: file.mkdir(),
    ):
        with pytest.raises(OSError, match=r"file|none") as caught:
            call()
        assert disk_fault(caught.value).startswith(f"{caught.value.filename}: ")


def test_the_target_of_a_copy_is_named(tmp_path):
    target = tmp_path / "no/such/folder/b"
    (tmp_path / "a").touch()
    with pytest.raises(FileNotFoundError) as caught:
        os.rename(tmp_path / "a", target)
    assert disk_fault(caught.value).startswith(f"{target}: not there")
    with pytest.raises(FileNotFoundError) as caught:
        shutil.copyfile(tmp_path / "none", target)
    assert disk_fault(caught.value).startswith(f"{tmp_path / 'none'}: not there")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no space left"),
        UserError("a: b"),
        OSError("without a code"),
        OSError(errno.ENOSPC, "No space left on device"),  # names no path
        OSError(errno.EINTR, "Interrupted", "a/b"),
        ConnectionResetError(errno.ECONNRESET, "reset", "a/b"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_no_disk_faults(error):
    assert disk_fault(error) is None
