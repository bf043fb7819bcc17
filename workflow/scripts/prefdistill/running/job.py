"""What every job shares: logging, one-line errors, one copy, signals, threads."""

import atexit
import fcntl
import gc
import hashlib
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prefdistill.disk import disk_fault
from prefdistill.running.slurm import requeue, seconds_left
from prefdistill.running.workers import (
    STOPPED,
    Outcome,
    end_with_parent,
    is_worker,
    n_workers,
    report,
    run_workers,
    worker_rank,
)

logger = logging.getLogger(__name__)

TIME_LIMIT = "the time limit"
# Of the time a job has left, this share, within bounds, is kept for a step and a save.
SPARE_SHARE, MIN_SPARE_S, MAX_SPARE_S = 0.05, 15.0, 300.0
END_S = 900  # how long Slurm may take to end a job
FAILED = "failed: "  # before an error's one line in a log; see ``failures``
LOCK_POLL_S = 0.5


class UserError(Exception):
    """A mistake the user can mend; its text is one line that says where and how."""


class Interrupted(Exception):
    """Raised once work is saved because the job has to stop; it can be resumed.

    Args:
        text: What is saved, for the log.
        progressed: Whether this run of the job came further than the one before.
    """

    def __init__(self, text: str, *, progressed: bool) -> None:
        super().__init__(text)
        self.progressed = progressed


class _Stop:
    """Why a job is to stop; set by a signal or a clock, read by long loops."""

    reason: str | None = None
    deadline: float = math.inf


def stop_requested() -> bool:
    """Whether to save and stop: SIGTERM or SIGUSR1 came, or the time is nearly over."""
    if _Stop.reason is None and time.monotonic() >= _Stop.deadline:
        _Stop.reason = TIME_LIMIT
    return _Stop.reason is not None


def _request_stop(number: int, _frame: object) -> None:
    _Stop.reason = _Stop.reason or signal.Signals(number).name
    if number == signal.SIGINT:  # whoever presses Ctrl-C twice cannot wait
        signal.signal(number, signal.SIG_DFL)


def stop_on(*numbers: signal.Signals) -> None:
    """Have long loops save and stop when one of these signals comes."""
    for number in numbers:
        signal.signal(number, _request_stop)


def _log_place() -> None:
    """Log where the job runs, so that a failure can be looked up there."""
    names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "CUDA_VISIBLE_DEVICES")
    known = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    logger.debug("%s", " ".join([f"on {socket.gethostname()}", *known]))


def _watch_time_limit() -> None:
    """Ask Slurm for the end of this job, and plan to stop some time before it."""
    left_s = seconds_left()
    if left_s is not None:
        spare_s = min(max(MIN_SPARE_S, SPARE_SHARE * left_s), MAX_SPARE_S)
        _Stop.deadline = time.monotonic() + left_s - spare_s
        logger.debug(
            "%.0f min left to the job, %.0f s kept to save", left_s / 60, spare_s
        )


def set_threads(n_threads: int) -> None:
    """Bound the threads of numerical libraries; call before they are imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(n_threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def hide_unused_imports(*names: str) -> None:
    """Make optional packages look absent, so that PEFT does not spend seconds on them.

    Call before ``peft`` is imported, and never without names in a job that quantises.
    """
    for name in names or ("gptqmodel", "optimum", "torchao", "sklearn"):
        sys.modules.setdefault(name, None)


def scratch_folder(job: Any) -> Path:
    """Where a job keeps its checkpoints: its own place below ``scratch``."""
    return Path(job.config["scratch"], job.rule, "_".join(job.wildcards) or "all")


def _stay_offline() -> None:
    """Keep the hub, and the token for it, from a job that has no business there."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        os.environ.pop(name, None)


def _log_to(log_path: Path, prefix: str = "") -> logging.Handler:
    """Log to the file and the terminal; returns the terminal's handler.

    A line on the terminal begins with the job, as several may run at once.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    logging.raiseExceptions = False  # a full disk is said once, not by each log line
    to_file = logging.FileHandler(log_path, mode="a", encoding="utf-8")
    to_file.setFormatter(
        logging.Formatter(f"%(asctime)s {prefix}%(levelname)s %(name)s: %(message)s")
    )
    to_terminal = logging.StreamHandler(sys.stderr)
    name = f"{log_path.parent.name} {log_path.stem}: {prefix}"
    to_terminal.setFormatter(logging.Formatter(f"{name}%(message)s"))
    to_terminal.setLevel(logging.INFO)
    logger.setLevel(logging.DEBUG)  # what only the file needs
    logging.basicConfig(level=logging.INFO, handlers=[to_file, to_terminal], force=True)
    logging.captureWarnings(True)
    return to_terminal


def _keep_log(log_path: Path) -> None:
    """Add the log to that of the job's earlier runs, as Snakemake deletes it."""
    earlier = log_path.with_suffix(".earlier.log")
    with suppress(OSError), open(earlier, "a", encoding="utf-8") as log:
        log.write(log_path.read_text(encoding="utf-8") + "\n")


def _fingerprint(job: Any) -> str:
    """What a job is about: its outputs, settings, and input files as they lie there."""
    state = [
        (str(path), found.st_size, found.st_mtime_ns)
        for path, found in ((path, os.stat(path)) for path in job.input)
    ]
    settings = sorted(map(repr, job.params.items()))
    text = repr((list(job.output), settings, state))
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _only_copy(job: Any) -> Iterator[int]:
    """Hold the job's lock; end well if another copy of it has just done the same work.

    Yields the lock's file descriptor.

    Two copies run at once when a cluster queues a job again whose first process still
    lives, or when a driver was killed and its jobs were not. The lock is the system's
    (flock) on a file beside the log: it goes when its holder dies.
    """
    log_path = Path(job.log[0])
    path = log_path.with_name(f".{log_path.stem}.lock")
    fingerprint = _fingerprint(job)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        waited = _wait_for_lock(lock, path)
        same = os.pread(lock, 1000, 0).decode().splitlines()[1:] == [fingerprint]
        if waited and same and all(map(os.path.exists, job.output)):
            logger.info("the other copy finished this job")
            sys.exit(0)
        with suppress(OSError):  # a full disk is for the job's own files to say
            os.ftruncate(lock, 0)
            text = f"{socket.gethostname()} {os.getpid()}\n{fingerprint}\n"
            os.pwrite(lock, text.encode(), 0)
        yield lock
    finally:
        os.close(lock)


def _wait_for_lock(lock: int, path: Path) -> bool:
    """Take the lock of an open file; returns whether another copy held it.

    Raises:
        Interrupted: If this job is to stop before that.
    """
    waited = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return waited
        except BlockingIOError:
            if not waited:
                holder = os.pread(lock, 1000, 0).decode().partition("\n")[0]
                logger.warning("another copy runs (%s); waiting for it", holder)
            waited = True
        except OSError as error:
            logger.warning("%s: no file locks here (%s)", path, error.strerror)
            return False
        if stop_requested():
            raise Interrupted("nothing done yet", progressed=False)
        time.sleep(LOCK_POLL_S)


def _run_in_workers(count: int, lock: int) -> None:
    """Have the job done by several processes; see ``launch.run_workers``.

    Raises:
        Interrupted: If they were stopped.
        UserError: If one of them failed.
    """
    logger.info("sharing the job out over %d processes", count)
    outcome = run_workers(count, lock, stop_requested)
    if outcome is None:
        return
    if outcome.kind == "stopped":
        _Stop.reason = _Stop.reason or "a signal"
        raise Interrupted(outcome.text, progressed=outcome.progressed)
    raise UserError(outcome.text)


@contextmanager
def _work(job: Any) -> Iterator[None]:
    """Run the body in one of a job's several processes, and report how it ended.

    The first logs as a job on its own does, the others their warnings, by number. A
    worker that ends early leaves at once, as taking leave of the others could hang.
    """
    rank = worker_rank()
    to_terminal = _log_to(Path(job.log[0]), prefix=f"[{rank}] " if rank else "")
    for handler in logging.getLogger().handlers if rank else []:
        handler.setLevel(logging.WARNING)
    end_with_parent()
    set_threads(max(1, job.threads // n_workers()))
    from prefdistill.running.processes import connect, disconnect

    try:
        connect()
        yield
        disconnect()
    except Interrupted as stop:
        report(Outcome("stopped", str(stop), stop.progressed))
        os._exit(STOPPED)
    except Exception as error:
        foreseen = isinstance(error, UserError) or disk_fault(error)
        report(Outcome("refused" if foreseen else "failed", _one_line(error)))
        to_terminal.setLevel(logging.CRITICAL)
        logger.exception("failed")
        os._exit(1)


def _one_line(error: Exception) -> str:
    """An error in one line; after its type, if nobody foresaw it."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return disk_fault(error) or kind + " ".join(str(error).split())


@contextmanager
def run_job(job: Any, *, online: bool = False, processes: int = 1) -> Iterator[None]:
    """Run a script's body: log, signals, time limit, one copy at a time, clear errors.

    A ``UserError`` ends the job with one line on the terminal and the log's path; any
    other exception does too, and leaves its traceback in the log. After SIGTERM or
    SIGUSR1 the body may save and raise ``Interrupted``, which ends the job with 143.
    Shortly before the job's time limit on Slurm it may do the same, and the job is
    queued again by itself.

    With more than one process the body is run by workers, which run this script again
    (``launch``), while this process holds the lock, watches the clock, hands signals on
    and ends as the workers did.

    Args:
        job: The script's ``snakemake`` object.
        online: Whether the body may use the hub, with the token of the environment.
        processes: Processes that share the body's work, one a GPU.
    """
    atexit.register(gc.freeze)  # or Python looks for garbage once more, for 0.7 s
    set_threads(job.threads)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not online:
        _stay_offline()
    stop_on(signal.SIGTERM, signal.SIGUSR1)
    if is_worker():
        with _work(job):
            yield
        return
    log_path = Path(job.log[0])
    to_terminal = _log_to(log_path)
    _log_place()
    _watch_time_limit()
    started = time.monotonic()
    try:
        with _only_copy(job) as lock:
            if processes > 1:
                _run_in_workers(processes, lock)
                logger.info("done in %.1f s", time.monotonic() - started)
                sys.exit(0)
            yield
    except Interrupted as stop:
        logger.warning("stopped by %s: %s", _Stop.reason, stop)
        if _Stop.reason == TIME_LIMIT and stop.progressed:
            requeue()
        _keep_log(log_path)
        if _Stop.reason == TIME_LIMIT:
            time.sleep(END_S)  # Slurm ends the job; if it ended itself, it would fail
        sys.exit(STOPPED)
    except Exception as error:
        to_terminal.setLevel(logging.CRITICAL)
        text = _one_line(error)
        logger.exception("%s%s", FAILED, text)
        _keep_log(log_path)
        print(f"error: {text} (log: {log_path})", file=sys.stderr, flush=True)
        sys.exit(1)
    logger.info("done in %.1f s", time.monotonic() - started)
