"""Tell which jobs are done, running, failed, stopped and left, by their logs and locks.

So the states are right while a driver runs, after it was killed, and for jobs on other
hosts that write the same files.
"""

import fcntl
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefdistill.pipeline.cost_model import Work
from prefdistill.running.logs import FAILED, JOB_LOGGER

PROGRESS = re.compile(r"(\d+)/(\d+) \S+ \(\d+ %\).*")
STATES = ("done", "running", "failed", "stopped", "left")
# Enough of a log's end to hold its last line: a traceback is shorter.
TAIL_BYTES = 65_536


@dataclass(frozen=True)
class Job:
    """Hold what the tables show of a job.

    Attributes:
        rule: Its rule.
        needed: Whether it is still to run.
        memory_gb: GB of main memory that it asks for.
        gpus: GPUs that it asks for.
        work: Its work by the cost model; None if its rule does not say.
        log: Its log.
    """

    rule: str
    needed: bool
    memory_gb: float
    gpus: int
    work: Work | None
    log: Path | None

    def gpu_hours(self, gpu_tflops: float) -> float:
        """Estimate GPU hours by the cost model; 0 without an estimate."""
        return self.work.gpu_hours(gpu_tflops) if self.work else 0.0

    def hours(self, gpu_tflops: float) -> float:
        """Estimate hours by the cost model; 0 without an estimate."""
        return self.work.hours(gpu_tflops) if self.work else 0.0


@dataclass(frozen=True)
class State:
    """Say where a job stands.

    Attributes:
        kind: One of ``STATES``. A stopped job was interrupted; the next driver
            resumes or restarts it.
        text: Its last progress, or why it failed.
        share: Share of its work that is done.
    """

    kind: str
    text: str = ""
    share: float = 0.0


def state_of(job: Job) -> State:
    """Tell where a job stands, from what is left to do, its lock and its log."""
    if not job.needed:
        return State("done", share=1.0)
    if job.log is None or not job.log.parent.is_dir():
        return State("left")
    lines = _last_lines(job.log)
    share, progress = _progress(lines)
    if _is_held(job.log.with_name(f".{job.log.stem}.lock")):
        return State("running", progress or "started", share)
    of_job = [line for line in lines if f" {JOB_LOGGER}: " in line]
    end = of_job[-1] if of_job else ""
    if f"ERROR {JOB_LOGGER}: {FAILED}" in end:
        return State("failed", f"{lines[-1].strip()} (log: {job.log})")
    if f"{JOB_LOGGER}: done in" in end or not lines:
        return State("left")
    return State("stopped", progress or "before its first step", share)


def _last_lines(path: Path) -> list[str]:
    """Read the last lines of a log; none if there is no log."""
    try:
        with open(path, "rb") as handle:
            handle.seek(max(os.fstat(handle.fileno()).st_size - TAIL_BYTES, 0))
            return handle.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def _progress(lines: Sequence[str]) -> tuple[float, str]:
    """Find the last line of progress; return the share of work done and the text."""
    for line in reversed(lines):
        found = PROGRESS.search(line)
        if found:
            return int(found[1]) / max(int(found[2]), 1), found[0]
    return 0.0, ""


def _is_held(lock: Path) -> bool:
    """Tell whether a process holds a job's lock, here or on a host with these files."""
    try:
        handle = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False
