"""Run a script's ``main`` as a job: log, lock, stop signals, threads, clear errors."""

import atexit
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefdistill.errors import Interrupted, UserError, disk_fault
from prefdistill.running.binding import bind
from prefdistill.running.lock import lock_path, only_copy
from prefdistill.running.logs import (
    FAILED,
    JOB_LOGGER,
    error_line,
    keep_log,
    log_place,
    log_to,
)
from prefdistill.running.records import JobRecord
from prefdistill.running.slurm import requeue
from prefdistill.running.stopping import (
    STOPPED,
    TERMINAL_SIGNALS,
    TIME_LIMIT,
    request_stop,
    stop_on,
    stop_reason,
    stop_requested,
    watch_time_limit,
)
from prefdistill.running.terminal import survive_lost_terminal
from prefdistill.running.ties import Ties
from prefdistill.running.workers import (
    Outcome,
    end_with_parent,
    is_worker,
    n_workers,
    report,
    run_workers,
    worker_rank,
)

logger = logging.getLogger(JOB_LOGGER)

END_S = 900  # seconds to wait until Slurm ends a job that it has queued again


def run_job(
    job: Any,
    main: Callable[..., None],
    *,
    online: bool = False,
    processes: int = 1,
    libraries: Callable[[], None] | None = None,
    **values: Any,
) -> None:
    """Run a script's ``main`` with the rule's values for its parameters.

    Args:
        job: The script's ``snakemake`` object.
        main: The script's function; ``binding.bind`` says what it is called with.
        online: Whether the job may use the Hugging Face hub, with the environment's
            token.
        processes: Processes that share the job's work, one per GPU.
        libraries: Function that imports the libraries that ``main`` needs, such as
            ``quick_imports.import_quantiser``. Each process that does work calls it
            first.
        **values: Parameters of ``main`` that the rule does not name because they change
            no result, such as a token budget.
    """
    with guarded(job, online=online, processes=processes):
        if libraries is not None:
            libraries()
        main(**bind(main, job, values))


@contextmanager
def guarded(job: Any, *, online: bool = False, processes: int = 1) -> Iterator[None]:
    """Run the body as a job: log, signals, time limit, one copy, record, clear errors.

    An exception ends the job with one line on the terminal that names the log; the log
    gets the traceback. After SIGTERM, SIGUSR1 or a signal of the terminal, the body may
    save and raise ``Interrupted``, which ends the job with exit status 143. Shortly
    before the job's time limit on Slurm, the body may do the same, and the job is
    queued again. A job that loses its driver, its lock or its folder stops in the same
    way (see ``ties``).

    With more than one process, workers run the body: each runs this script again (see
    ``workers``). This process holds the lock, watches the clock and passes signals on.

    Args:
        job: The script's ``snakemake`` object.
        online: See ``run_job``.
        processes: See ``run_job``.
    """
    atexit.register(gc.freeze)  # or a last garbage collection takes 0.7 s
    set_threads(job.threads)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not online:
        _stay_offline()
    survive_lost_terminal()
    stop_on(*TERMINAL_SIGNALS, signal.SIGUSR1)
    ties = Ties(job.output)
    if is_worker():
        ties.keep(lock_path(job))
        ties.watch()
        with _work(job):
            yield
        return
    log_path = Path(job.log[0])
    to_terminal = log_to(log_path)
    log_place()
    watch_time_limit()
    ties.watch()
    started = time.monotonic()
    try:
        with only_copy(job) as lock:
            ties.keep(lock_path(job), lock)
            record = JobRecord(job)
            record.begin()
            if processes > 1:
                _run_in_workers(processes, lock)
                record.end()
                logger.info("done in %.1f s", time.monotonic() - started)
                sys.exit(0)
            yield
            record.end()
    except Interrupted as stop:
        logger.warning("stopped by %s: %s", stop_reason(), stop)
        if stop_reason() == TIME_LIMIT and stop.progressed:
            requeue()
        if ties.lost_place() is None:  # or the log is another run's
            keep_log(log_path)
        if stop_reason() == TIME_LIMIT:
            # Slurm ends a requeued job; one that ends by itself counts as failed.
            time.sleep(END_S)
        sys.exit(STOPPED)
    except Exception as error:
        to_terminal.setLevel(logging.CRITICAL)
        text = error_line(error)
        logger.exception("%s%s", FAILED, text)
        keep_log(log_path)
        # In one piece, as several jobs may fail at once.
        sys.stderr.write(f"error: {text} (log: {log_path})\n")
        sys.stderr.flush()
        sys.exit(1)
    logger.info("done in %.1f s", time.monotonic() - started)


def set_threads(n_threads: int) -> None:
    """Limit the threads of numerical libraries; call it before they are imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(n_threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _stay_offline() -> None:
    """Take the hub, and its token, away from a job that does not need them."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        os.environ.pop(name, None)


def _run_in_workers(count: int, lock: int) -> None:
    """Run the job in several processes; see ``workers.run_workers``.

    Raises:
        Interrupted: If they were stopped.
        UserError: If one of them failed.
    """
    logger.info("sharing the job out over %d processes", count)
    outcome = run_workers(count, lock, stop_requested)
    if outcome is None:
        return
    if outcome.kind == "stopped":
        request_stop("a signal")
        raise Interrupted(outcome.text, progressed=outcome.progressed)
    raise UserError(outcome.text)


@contextmanager
def _work(job: Any) -> Iterator[None]:
    """Run the body in one of a job's several processes, and report how it ended.

    Worker 0 logs as the only process of a job does. The others log only warnings, with
    their number.
    """
    rank = worker_rank()
    to_terminal = log_to(Path(job.log[0]), prefix=f"[{rank}] " if rank else "")
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
        # At once: disconnecting could wait for the other workers for ever.
        os._exit(STOPPED)
    except Exception as error:
        foreseen = isinstance(error, UserError) or disk_fault(error)
        report(Outcome("refused" if foreseen else "failed", error_line(error)))
        to_terminal.setLevel(logging.CRITICAL)
        logger.exception("failed")
        os._exit(1)
