"""Tell a job when to save and stop: on a signal, or shortly before its time limit."""

import logging
import math
import signal
import time
from collections.abc import Iterable

from prefdistill.running.logs import JOB_LOGGER
from prefdistill.running.slurm import seconds_left

logger = logging.getLogger(JOB_LOGGER)

TIME_LIMIT = "the time limit"
# What a terminal sends: Ctrl-C, Ctrl-\\, its loss; and what `kill` and systemd send.
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM)
STOPPED = 143  # exit status after a stop on request, as of a process that SIGTERM ended
# Share of the job's time that is kept for one last step and the save, and its bounds.
SPARE_SHARE, MIN_SPARE_S, MAX_SPARE_S = 0.05, 15.0, 300.0


class _Stop:
    """Hold why this process has to stop: signals and a clock set it, loops read it."""

    reason: str | None = None
    deadline: float = math.inf
    asked_for: bool = False  # whether a loop asks, and so can save and stop


def stop_requested() -> bool:
    """Tell whether to save and stop: a signal came, or the time is nearly over."""
    _Stop.asked_for = True
    if _Stop.reason is None and time.monotonic() >= _Stop.deadline:
        _Stop.reason = TIME_LIMIT
    return _Stop.reason is not None


def stop_reason() -> str | None:
    """Return the signal's name or ``TIME_LIMIT``; None if nothing asked to stop."""
    return _Stop.reason


def can_save() -> bool:
    """Tell whether this process runs a loop that saves and stops on request."""
    return _Stop.asked_for


def request_stop(reason: str) -> None:
    """Ask long loops to save and stop; the first reason is kept."""
    _Stop.reason = _Stop.reason or reason


def _on_signal(number: int, _frame: object) -> None:
    request_stop(signal.Signals(number).name)
    if number == signal.SIGINT:  # a second Ctrl-C ends the process at once
        signal.signal(number, signal.SIG_DFL)


def heeded(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Leave out signals that whoever started this process has it ignore (nohup, &)."""
    return [each for each in numbers if signal.getsignal(each) != signal.SIG_IGN]


def stop_on(*numbers: signal.Signals) -> None:
    """Ask long loops to save and stop when one of these signals comes.

    A driver starts its jobs with these signals blocked, so that one that comes before
    this call waits for it.
    """
    for number in heeded(numbers):
        signal.signal(number, _on_signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def watch_time_limit() -> None:
    """Ask Slurm for the job's time limit, and plan to stop shortly before it."""
    left_s = seconds_left()
    if left_s is not None:
        spare_s = min(max(MIN_SPARE_S, SPARE_SHARE * left_s), MAX_SPARE_S)
        _Stop.deadline = time.monotonic() + left_s - spare_s
        logger.debug(
            "%.0f min left to the job, %.0f s kept to save", left_s / 60, spare_s
        )
