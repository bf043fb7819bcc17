"""Show what a run would take, and where it stands.

Hours come from the cost model that also sets the jobs' time limits (``resources``);
states from the jobs' logs and locks (``job``), so that they are right while a driver
runs, after it was killed, and for jobs on other hosts.
"""

import fcntl
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefdistill.pipeline.costs import Work
from prefdistill.running.logs import FAILED, JOB_LOGGER

PROGRESS = re.compile(r"(\d+)/(\d+) \S+ \(\d+ %\).*")
STATES = ("done", "running", "failed", "stopped", "left")
# A log's last lines, which have its end; a traceback is shorter.
TAIL_BYTES = 65_536


@dataclass(frozen=True)
class Job:
    """Hold what the tables show of a job.

    Attributes:
        rule: Its rule.
        needed: Whether it is still to run.
        memory_gb: Of main memory that it asks for.
        gpus: That it asks for.
        work: By the cost model; None if its rule does not say.
        log: Its log.
    """

    rule: str
    needed: bool
    memory_gb: float
    gpus: int
    work: Work | None
    log: Path | None

    def gpu_hours(self, config: dict[str, Any]) -> float:
        """Estimate by the cost model; 0 where that is silent."""
        return self.work.gpu_hours(config) if self.work else 0.0

    def hours(self, config: dict[str, Any]) -> float:
        """Estimate hours by the clock, by the cost model."""
        return self.work.hours(config) if self.work else 0.0


@dataclass(frozen=True)
class State:
    """Say where a job stands.

    Attributes:
        kind: One of ``STATES``. A stopped job was broken off and goes on, or starts
            again, with the next driver.
        text: Its last progress, or why it failed.
        share: Of its work that is done.
    """

    kind: str
    text: str = ""
    share: float = 0.0


def by_rule(jobs: Iterable[Job]) -> dict[str, list[Job]]:
    """Group jobs by rule, in the order of their first jobs."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.rule, []).append(job)
    return found


def plan_text(jobs: Sequence[Job], config: dict[str, Any], free_gb: float) -> str:
    """Write a table of the jobs that are to run, by rule and in all.

    Args:
        jobs: Of the whole run; those that are not needed are left out.
        config: Has ``gpu_tflops``.
        free_gb: Free on the file system of the results.
    """
    needed = [job for job in jobs if job.needed]
    if not needed:
        return "Nothing is to be done."
    groups = {**by_rule(needed), "all": needed}
    rows = [
        (
            rule,
            len(group),
            gpus := max(job.gpus for job in group),
            _figure(sum(job.gpu_hours(config) for job in group)) if gpus else "",
            _figure(max(job.hours(config) for job in group)),
            _figure(max(job.memory_gb for job in group)),
            _figure(sum(job.work.disk_gb for job in group if job.work)),
            _figure(max(scratch)) if any(scratch := _scratch(group)) else "",
        )
        for rule, group in groups.items()
    ]
    head = ("rule", "jobs", "GPUs", "GPU hours", "longest, h")
    head += ("memory, GB", "disk, GB", "scratch, GB")
    needed_gb = sum(job.work.disk_gb for job in needed if job.work)
    lines = [
        _table(head, rows),
        "GPUs, memory and scratch (checkpoints, while it runs) of the largest job; GPU "
        f"hours at\n{config['gpu_tflops']:g} TFLOP/s a GPU (gpu_tflops), without "
        "waiting and start-up; disk at most.",
        f"{_figure(free_gb)} GB are free here.",
    ]
    if needed_gb > free_gb:
        lines[-1] = (
            f"warning: only {lines[-1]} The results may take {_figure(needed_gb)} GB."
        )
    silent = sorted({job.rule for job in needed if job.work is None})
    if silent:
        lines.append(f"without an estimate: {', '.join(silent)}")
    return "\n\n".join(lines)


def _scratch(jobs: Sequence[Job]) -> list[float]:
    return [job.work.scratch_gb for job in jobs if job.work]


def status_text(
    jobs: Sequence[Job], config: dict[str, Any], driver: str | None, target: str
) -> str:
    """Write a table of jobs by rule and state, and a line per running or failed job.

    Args:
        jobs: Of the whole run.
        config: Has ``gpu_tflops``.
        driver: The driver at work, in words, or None.
        target: What the run makes.
    """
    states = [state_of(job) for job in jobs]
    places = {rule: [] for rule in by_rule(jobs)}
    for place, job in enumerate(jobs):
        places[job.rule].append(place)
    rows = []
    for rule, own in [*places.items(), ("all", range(len(jobs)))]:
        counts = [sum(states[k].kind == kind for k in own) for kind in STATES]
        left = sum(
            jobs[k].gpu_hours(config) * (1 - states[k].share)
            for k in own
            if jobs[k].needed
        )
        rows.append((rule, *counts, _figure(left) if left else ""))
    notes = [
        f"{state.kind}: {_name(job)}: {state.text}"
        for job, state in zip(jobs, states, strict=True)
        if state.kind in ("running", "failed", "stopped")
    ]
    return "\n\n".join(
        [
            f"{driver} is at work." if driver else "No driver is at work here.",
            _table((target, *STATES, "GPU hours left"), rows),
            *(["\n".join(notes)] if notes else []),
            f"GPU hours at {config['gpu_tflops']:g} TFLOP/s a GPU (gpu_tflops).",
        ]
    )


def _figure(value: float) -> str:
    """Format a number with at most three significant digits and two decimals."""
    if 0 < value < 0.005:
        return "<0.01"
    digits = 0 if value >= 100 or not value else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Write columns for a terminal, the last row (all) set off, zeros left out."""
    cells = [head, *[[str(cell or "") for cell in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in cells
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _name(job: Job) -> str:
    return f"{job.rule} {job.log.stem}" if job.log else job.rule


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
    """Find the last line of progress: share of the work that is done, and its text."""
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
