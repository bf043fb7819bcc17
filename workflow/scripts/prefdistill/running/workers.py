"""Run a job's script as several processes of one node, and watch them.

The processes get the environment variables that torchrun would set. torchrun itself is
not used: it kills the workers of a stopped job before they have saved, and it prints a
page of text where a job prints one line.
"""

import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from prefdistill.running.stopping import STOPPED

RUN_FOLDER = "PREFDISTILL_RUN_FOLDER"
POLL_S = 0.1
GRACE_S = 5.0  # for the other workers to end, once one has failed
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Outcome:
    """The end of a worker that did not finish its work.

    Attributes:
        kind: ``stopped`` on request, ``refused`` with a line for the user, ``failed``
            with another exception, or ``died`` without a report.
        text: One line.
        progressed: Whether a stopped worker came further than the run before.
    """

    kind: str
    text: str
    progressed: bool = False


def is_worker() -> bool:
    """Tell whether ``run_workers`` started this process."""
    return RUN_FOLDER in os.environ


def worker_rank() -> int:
    """Return the number of this worker, from 0."""
    return int(os.environ["RANK"])


def n_workers() -> int:
    """Return how many workers the job has."""
    return int(os.environ["WORLD_SIZE"])


def end_with_parent() -> None:
    """Have the system send this process SIGTERM when its parent dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def report(outcome: Outcome) -> None:
    """Write a worker's outcome where the process that started it reads it."""
    path = Path(os.environ[RUN_FOLDER], f"outcome-{worker_rank()}.json")
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    os.replace(part, path)


def run_workers(
    count: int, lock: int, stop_requested: Callable[[], bool]
) -> Outcome | None:
    """Run this process's script in ``count`` processes, and wait for all of them.

    A request to stop is passed on once, as SIGTERM; the workers then save and end.

    Args:
        count: Number of processes.
        lock: File descriptor of the job's lock. Workers hold it too, so that no copy
            starts before the last worker has ended.
        stop_requested: Function that tells whether the job has to stop.

    Returns:
        None if all workers finished, otherwise the outcome that explains the others.
    """
    with tempfile.TemporaryDirectory(prefix="prefdistill-") as folder:
        shared = {"WORLD_SIZE": str(count), RUN_FOLDER: folder}
        workers = [
            subprocess.Popen(
                # `sys.argv` lacks the `-m` of `python -m benchmarks.engine`.
                [sys.executable, *sys.orig_argv[1:]],
                env=os.environ | shared | {"RANK": str(n), "LOCAL_RANK": str(n)},
                pass_fds=[lock],
            )
            for n in range(count)
        ]
        try:
            statuses = _watch(workers, stop_requested)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        return _explain(statuses, Path(folder))


def _watch(
    workers: list[subprocess.Popen], stop_requested: Callable[[], bool]
) -> list[int | None]:
    """Wait for the workers' exit statuses; None for a worker that still runs.

    A worker may wait for a failed one for ever, so it gets only ``GRACE_S`` more.
    """
    told, failed_at = False, math.inf
    while True:
        statuses = [worker.poll() for worker in workers]
        if any(status not in (None, 0, STOPPED) for status in statuses):
            failed_at = min(failed_at, time.monotonic())
        if None not in statuses or time.monotonic() - failed_at > GRACE_S:
            return statuses
        if stop_requested() and not told:
            told = True
            for worker in workers:
                worker.terminate()
        time.sleep(POLL_S)


def _explain(statuses: list[int | None], folder: Path) -> Outcome | None:
    """Choose the outcome that explains the others; None if all workers finished.

    A refusal comes first, then a death, then a stop, then the earliest other failure:
    once one process is gone, the connections of the others fail.
    """
    paths = sorted(folder.glob("outcome-*.json"), key=lambda path: path.stat().st_mtime)
    outcomes = [Outcome(**json.loads(path.read_text("utf-8"))) for path in paths]
    told = {path.name for path in paths}
    for n, status in enumerate(statuses):
        if status in (None, 0) or f"outcome-{n}.json" in told:
            continue
        if status == -signal.SIGTERM:  # before it could catch the signal
            outcomes.append(Outcome("stopped", "nothing done yet"))
            continue
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        text = f"process {n} of {len(statuses)} died ({how}), maybe short of memory"
        outcomes.append(Outcome("died", f"{text}; run again to resume, or lower gpus"))
    order = ["refused", "died", "stopped", "failed"]
    return min(outcomes, key=lambda each: order.index(each.kind), default=None)
