"""Stop a job that has lost its driver, its lock or its folder.

A killed driver leaves its jobs behind. They must not write over the results of a later
run. So each job has a thread that looks once a second at what ties the job to its run,
and every write of an output looks again. A job is stopped only on proof:

- Its lock file, or a folder of its outputs, is no longer the one that it began with.
- Another driver has taken the folder over: the driver's token was replaced.
- Its driver has ended, where the job runs beside it and can see that. On a cluster, a
  job whose driver has ended goes on until the next driver replaces the token.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prefdistill.errors import Interrupted
from prefdistill.running.logs import JOB_LOGGER
from prefdistill.running.stopping import (
    STOPPED,
    can_save,
    request_stop,
    stop_reason,
)
from prefdistill.storage.digests import SNAKEMAKE_FOLDER
from prefdistill.storage.hosts import PID_SPACE, has_ended
from prefdistill.storage.whole_files import RESULTS, guard_writes

logger = logging.getLogger(JOB_LOGGER)

# The record of a folder's driver, relative to the folder, and the environment variable
# that tells jobs whose they are.
OWNER = SNAKEMAKE_FOLDER / "prefdistill.owner.json"
DRIVER = "PREFDISTILL_DRIVER"
POLL_S = 1.0
# A job without a loop that saves may finish in this time after a signal to stop.
FINISH_S = 10.0
# A loop has this time to save, once nobody waits for the job any more.
SAVE_S = 300.0


def driver_tie(token: str, slurm_job: str | None) -> str:
    """Describe this driver for its jobs' environment (``DRIVER``)."""
    return json.dumps([token, PID_SPACE, os.getpid(), slurm_job])


def read_token() -> str | None:
    """Read the token of the folder's present driver; None if nothing sound says it."""
    with suppress(OSError, ValueError, AttributeError):
        token = json.loads(OWNER.read_text(encoding="utf-8")).get("token")
        return token if isinstance(token, str) else None
    return None


class Ties:
    """What ties this process's job to its run.

    Args:
        outputs: The job's outputs; their folders exist.
    """

    def __init__(self, outputs: Iterable[str | Path]) -> None:
        self._kept: dict[Path, os.stat_result] = {}
        self._lost_place: str | None = None
        for folder in {Path(output).parent for output in outputs}:
            self.keep(folder)
        self._token, self._space, self._pid, self._slurm_job = None, "", 0, None
        with suppress(ValueError, KeyError, TypeError):
            found = json.loads(os.environ[DRIVER])
            self._token, self._space, self._pid, self._slurm_job = found

    def keep(self, path: Path, held: int | None = None) -> None:
        """Hold that a path has to stay the file or folder that it is.

        Args:
            path: The path.
            held: Descriptor of the file that was opened there; None opens it now.
        """
        with suppress(OSError):
            # Kept open, so that its inode number is given to no other file.
            if held is None:
                held = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._kept[path.absolute()] = os.fstat(held)

    def lost_place(self) -> str | None:
        """Name the lock or folder that was removed or replaced; None if none was."""
        for path, found in list(self._kept.items()):  # a thread may add one
            try:
                same = os.path.samestat(os.stat(path), found)
            except FileNotFoundError:
                same = False
            except OSError:
                same = True  # a file system that does not answer proves nothing
            if not same:
                self._lost_place = f"the loss of {os.path.relpath(path)}"
        return self._lost_place

    def lost_driver(self) -> str | None:
        """Say how the driver was lost; None if it was not, or nobody can tell."""
        if self._token is None:
            return None
        if read_token() not in (None, self._token):
            return "another driver, which took the folder over"
        beside = self._slurm_job == os.environ.get("SLURM_JOB_ID")
        if beside and has_ended(self._space, self._pid):
            return "the end of its driver"
        return None

    def check_write(self, path: Path) -> None:
        """Refuse to write a file that may be a later run's.

        A job that has lost only its driver still holds its lock. So it may save its
        state, which lies outside of ``RESULTS``.

        Raises:
            Interrupted: If the job is no longer its run's.
        """
        lost = self.lost_place()
        if lost is None and path.absolute().is_relative_to(Path(RESULTS).absolute()):
            lost = self.lost_driver()
        if lost is not None:
            request_stop(lost)
            raise Interrupted(f"{path} not written", progressed=False)

    def watch(self) -> None:
        """Check every write from now on, and stop the job if it loses a tie."""
        guard_writes(self.check_write)
        threading.Thread(target=self._watch, name="ties", daemon=True).start()

    def _watch(self) -> None:
        lost, asked_at = None, None
        while True:
            time.sleep(POLL_S)
            if lost is None:
                lost = self.lost_place() or self.lost_driver()
                if lost is not None:
                    request_stop(lost)
            if asked_at is None and stop_reason() is not None:
                asked_at = time.monotonic()
            if asked_at is None:
                continue
            waited_s = time.monotonic() - asked_at
            if lost is not None:
                over = waited_s > (SAVE_S if can_save() else 0)
            else:
                over = not can_save() and waited_s > FINISH_S
            if over:
                logger.warning("stopped by %s: nothing to save", stop_reason())
                os._exit(STOPPED)
