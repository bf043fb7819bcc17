"""Define the errors that end a job with one line, and describe faults of file systems.

Every other module may import this one, so it imports only the standard library.
"""

import errno
import unicodedata
from pathlib import Path

# Control and format characters (which turn the direction of text or hide it), halves of
# surrogate pairs, and separators of lines and paragraphs.
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(text: str) -> str:
    """Show characters that steer a terminal or a page as escapes of Python."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in _UNPRINTABLE
        else c
        for c in text
    )


def one_line(error: BaseException) -> str:
    """Fold the message of an error to one line."""
    return " ".join(str(error).split())


class UserError(Exception):
    """A mistake that the user can fix; one line says where, what, and the remedy."""


class DamagedFile(UserError):
    """A file whose content is damaged, or not what its name says.

    The text is one line: the path, the fault, and a remedy that every owner of the file
    can follow. If a rule made the file, the job replaces the remedy with advice to
    rerun that rule (``logs.error_line``), as the code that reads a file does not know
    the rules.

    Args:
        path: The file.
        what: The fault.
        remedy: How to fix it.
    """

    def __init__(
        self, path: str | Path, what: str, remedy: str = "copy or fetch it again"
    ) -> None:
        super().__init__(f"{path}: {what}; {remedy}")
        self.path, self.what = path, what


class Interrupted(Exception):
    """A stop on request, raised once the work is saved; the job can be resumed.

    Args:
        text: Says in the log how much is saved.
        progressed: Whether this run of the job came further than the previous one.
    """

    def __init__(self, text: str, *, progressed: bool) -> None:
        super().__init__(text)
        self.progressed = progressed


_SAME_COMMAND = "and run the same command: earlier results are intact"
_GONE = f"bring it back {_SAME_COMMAND}"
# By the system's error code: the fault of the file system, and the remedy.
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
    """Describe a file system's error in one line: path, fault and remedy.

    Returns:
        None if the error is not a file system's, or names no path.
    """
    if not isinstance(error, OSError) or error.errno not in _DISK_FAULTS:
        return None
    path = error.filename2 or error.filename  # of a copy or rename, where it goes
    return f"{path}: {_DISK_FAULTS[error.errno]}" if path is not None else None
