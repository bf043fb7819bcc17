"""Let only one copy of a job run at a time.

Two copies run at once when a cluster requeues a job whose first process still runs, or
when Snakemake was killed and its jobs were not.
"""

import errno
import fcntl
import hashlib
import logging
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prefdistill.errors import Interrupted, UserError
from prefdistill.running.logs import JOB_LOGGER
from prefdistill.running.stopping import stop_requested

logger = logging.getLogger(JOB_LOGGER)

LOCK_POLL_S = 0.5


def _fingerprint(job: Any) -> str:
    """Hash a job's outputs and settings, and its input files' sizes and times."""
    state = [
        (str(path), found.st_size, found.st_mtime_ns)
        for path, found in ((path, os.stat(path)) for path in job.input)
    ]
    settings = sorted(map(repr, job.params.items()))
    text = repr((list(job.output), settings, state))
    return hashlib.sha256(text.encode()).hexdigest()


def lock_path(job: Any) -> Path:
    """Return where a job's lock is: beside its log."""
    log_path = Path(job.log[0])
    return log_path.with_name(f".{log_path.stem}.lock")


def open_lock(path: Path) -> int:
    """Open a lock's file, and make it if it is not there.

    Raises:
        UserError: If something else is in its place.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        lock = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.ELOOP):
            raise
    else:
        if stat.S_ISREG(os.fstat(lock).st_mode):
            return lock
        os.close(lock)
    raise UserError(
        f"{path}: not a lock file but a folder, a link or a pipe; remove it and start "
        "again"
    )


@contextmanager
def only_copy(job: Any) -> Iterator[int]:
    """Hold the job's lock, or exit with 0 if another copy has just done the same work.

    Yields:
        The lock's file descriptor.

    Raises:
        Interrupted: If this job has to stop before it gets the lock.
    """
    # A lock of the system (flock), which is released when its holder dies.
    path = lock_path(job)
    fingerprint = _fingerprint(job)
    lock = open_lock(path)
    try:
        waited = _wait_for_lock(lock, path)
        same = _text(lock).splitlines()[1:] == [fingerprint]
        if waited and same and all(map(os.path.exists, job.output)):
            logger.info("the other copy finished this job")
            sys.exit(0)
        with suppress(OSError):  # the job's own files will report a full disk
            os.ftruncate(lock, 0)
            text = f"{socket.gethostname()} {os.getpid()}\n{fingerprint}\n"
            os.pwrite(lock, text.encode(), 0)
        yield lock
    finally:
        os.close(lock)


def _text(lock: int) -> str:
    """Read who holds a lock, and for what work."""
    return os.pread(lock, 1000, 0).decode(errors="replace")


def lock_holder(path: Path) -> str | None:
    """Read the host and process that hold a job's lock; None if it is free."""
    try:
        lock = open_lock(path)
    except (OSError, UserError):
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _text(lock).partition("\n")[0] or "not recorded"
    except OSError:
        return None
    finally:
        os.close(lock)
    return None


def _wait_for_lock(lock: int, path: Path) -> bool:
    """Take the lock of an open file.

    Returns:
        Whether this job had to wait for another copy.

    Raises:
        Interrupted: If this job has to stop before it gets the lock.
    """
    waited = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return waited
        except BlockingIOError:
            if not waited:
                holder = _text(lock).partition("\n")[0]
                logger.warning("another copy runs (%s); waiting for it", holder)
            waited = True
        except OSError as error:
            logger.warning(
                "%s: its file system has no locks (%s); going on without one",
                path, error.strerror,
            )  # fmt: skip
            return False
        if stop_requested():
            raise Interrupted("nothing done yet", progressed=False)
        time.sleep(LOCK_POLL_S)
