"""Stop a driver and its jobs on Ctrl-C, a lost terminal, SIGTERM and SIGQUIT.

A terminal sends its signals to the driver and to its jobs, ``kill`` to the driver only.
Both end in the same way: every job saves its state and ends, then the driver.

- Until Snakemake starts jobs there is nothing to save, and a signal ends the driver.
- Then a thread waits for the signals, and the main thread blocks them. Jobs and their
  shells inherit that, so none dies before it can save; ``stopping.stop_on`` unblocks
  them in the job. The thread sends SIGTERM to every job on this machine, cancels jobs
  on Slurm, which send it too, and has Snakemake start no more.
- A second Ctrl-C kills the jobs on this machine. They go on from their last checkpoint.

The Snakefile imports this module; beside the standard library it needs psutil, which
Snakemake brings.
"""

import atexit
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Collection
from contextlib import suppress
from typing import Any, NoReturn

from prefdistill.running.stopping import STOPPED, TERMINAL_SIGNALS, heeded
from prefdistill.running.terminal import survive_lost_terminal

POLL_S = 0.2
# Snakemake runs a script as a copy in this folder.
_SCRIPTS = ".snakemake/scripts/"


def _end(number: int, _frame: object) -> NoReturn:
    """End a driver that runs no job yet."""
    name = signal.Signals(number).name
    print(f"stopped by {name} before the first job", file=sys.stderr)
    sys.exit(STOPPED)


def end_on_signals() -> None:
    """End this process in one line on a signal; call it in the main thread."""
    if threading.current_thread() is threading.main_thread():
        survive_lost_terminal()
        for number in heeded(TERMINAL_SIGNALS):
            signal.signal(number, _end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TERMINAL_SIGNALS)


def stop_jobs_on_signals(workflow: Any) -> None:
    """Stop the jobs, and then the driver, on a signal; call it before the first job.

    Args:
        workflow: Snakemake's workflow, which has its scheduler.
    """
    signals = heeded(TERMINAL_SIGNALS)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # The system may give a signal to any thread that does not block it, such as one of
    # Snakemake's executor; its number arrives in the pipe all the same.
    for number in signals:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(
        target=_wait, args=(workflow, signals, reader), name="stops", daemon=True
    ).start()


def _wait(workflow: Any, signals: Collection[signal.Signals], reader: int) -> NoReturn:
    """Wait for a signal, and then send it on until the driver has ended."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    name = signal.Signals(os.read(reader, 1)[0]).name
    print(
        f"stopping on {name}: jobs save and end; a second Ctrl-C kills them",
        file=sys.stderr,
    )
    atexit.register(_say_stopped, name)
    workflow.scheduler.exit_gracefully()
    if not workflow.local_exec:
        _leave_slurm(workflow.scheduler)
    told: set[int] = set()
    while True:  # a job may have been about to start
        _send(signal.SIGTERM, told)
        ready, _, _ = select.select([reader], [], [], POLL_S)
        if ready and os.read(reader, 1)[0] == signal.SIGINT:
            _send(signal.SIGKILL, set())


def _say_stopped(name: str) -> None:
    print(f"stopped by {name}; the same command goes on", file=sys.stderr, flush=True)


def _leave_slurm(scheduler: Any) -> None:
    """Cancel the jobs in Slurm's queue, and have Snakemake end without their end.

    Jobs are cancelled by the name that they share, and again at the end: Snakemake
    loses sight of a job while it asks for its state or submits it.
    """
    run = getattr(scheduler._executor, "run_uuid", None)
    if run is not None and shutil.which("scancel"):
        cancel = ["scancel", f"--name={run}", f"--user={os.getuid()}"]
        atexit.register(subprocess.run, cancel, check=False)
        subprocess.run(cancel, check=False)
    scheduler.executor_error_callback(KeyboardInterrupt())


def _send(number: signal.Signals, told: set[int]) -> None:
    """Send a signal to the jobs on this machine that have not got it yet."""
    import psutil

    with suppress(psutil.Error):
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it may just have ended
                job = any(_SCRIPTS in word for word in process.cmdline())
                if job and process.pid not in told:
                    told.add(process.pid)
                    process.send_signal(number)
