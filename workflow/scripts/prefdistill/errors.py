"""The errors that end a job with one line for the user, and what to do about disks.

Only the standard library is imported here: every other module may use this one.
"""

import errno
from pathlib import Path


class UserError(Exception):
    """A mistake that the user can mend. Its text is one line: where, what, how."""


class DamagedFile(UserError):
    """A file that is not what its name says.

    Its text is one line: the path, what is wrong, and a remedy that fits whoever has
    the file. Where a rule made the file, the job puts the rule in the remedy's place
    (``logs.error_line``): a reader does not know of rules.

    Args:
        path: The file.
        what: What is wrong with it.
        remedy: What to do about it.
    """

    def __init__(
        self, path: str | Path, what: str, remedy: str = "copy or fetch it again"
    ) -> None:
        super().__init__(f"{path}: {what}; {remedy}")
        self.path, self.what = path, what


class Interrupted(Exception):
    """Raised once work is saved because the job has to stop. It can be resumed.

    Args:
        text: What is saved, for the log.
        progressed: Whether this run of the job came further than the one before.
    """

    def __init__(self, text: str, *, progressed: bool) -> None:
        super().__init__(text)
        self.progressed = progressed


_SAME_COMMAND = "and run the same command: earlier results are intact"
_GONE = f"bring it back {_SAME_COMMAND}"
# What the system says of a file system that fails a job, and what to do about it.
_DISK_FAULTS = {
    errno.ENOSPC: f"no space left on its file system; free some {_SAME_COMMAND}",
    errno.EDQUOT: f"the quota on its file system is used up; free some {_SAME_COMMAND}",
    errno.EFBIG: "larger than files may be here (ulimit -f, or the file system's own "
    f"limit); raise that or write elsewhere {_SAME_COMMAND}",
    errno.EROFS: f"its file system is read-only; make it writable {_SAME_COMMAND}",
    errno.EACCES: f"permission denied; give this user access {_SAME_COMMAND}",
    errno.EPERM: f"not permitted; give this user access {_SAME_COMMAND}",
    errno.EIO: f"its disk or server failed; see to it (dmesg) {_SAME_COMMAND}",
    errno.ESTALE: f"its server no longer knows it; mount it again {_SAME_COMMAND}",
    errno.ENOENT: f"not there, or no longer; {_GONE}",
    errno.ENOTDIR: f"a part of its path is not a folder; {_GONE}",
    errno.EEXIST: f"cannot be made a folder, as something is there; {_GONE}",
}


def disk_fault(error: BaseException) -> str | None:
    """One line on an error that is the file system's: the path and what to do."""
    if not isinstance(error, OSError) or error.errno not in _DISK_FAULTS:
        return None
    path = error.filename2 or error.filename  # of a copy or rename, where it goes
    return f"{path}: {_DISK_FAULTS[error.errno]}" if path is not None else None
