"""Tell a job when to save and stop: on a signal, or shortly before its time limit."""

import logging
import math
import signal
import time

from prefdistill.running.logs import JOB_LOGGER
from prefdistill.running.slurm import seconds_left

logger = logging.getLogger(JOB_LOGGER)

TIME_LIMIT = "the time limit"
# Share of the job's time that is kept for one last step and the save, and its bounds.
SPARE_SHARE, MIN_SPARE_S, MAX_SPARE_S = 0.05, 15.0, 300.0


class _Stop:
    """Hold why this process has to stop: signals and a clock set it, loops read it."""

    reason: str | None = None
    deadline: float = math.inf


def stop_requested() -> bool:
    """Tell whether to save and stop: a signal came, or the time is nearly over."""
    if _Stop.reason is None and time.monotonic() >= _Stop.deadline:
        _Stop.reason = TIME_LIMIT
    return _Stop.reason is not None


def stop_reason() -> str | None:
    """Return the signal's name or ``TIME_LIMIT``; None if nothing asked to stop."""
    return _Stop.reason


def request_stop(reason: str) -> None:
    """Ask long loops to save and stop; the first reason is kept."""
    _Stop.reason = _Stop.reason or reason


def _on_signal(number: int, _frame: object) -> None:
    request_stop(signal.Signals(number).name)
    if number == signal.SIGINT:  # a second Ctrl-C ends the process at once
        signal.signal(number, signal.SIG_DFL)


def stop_on(*numbers: signal.Signals) -> None:
    """Ask long loops to save and stop when one of these signals comes."""
    for number in numbers:
        signal.signal(number, _on_signal)


def watch_time_limit() -> None:
    """Ask Slurm for the job's time limit, and plan to stop shortly before it."""
    left_s = seconds_left()
    if left_s is not None:
        spare_s = min(max(MIN_SPARE_S, SPARE_SHARE * left_s), MAX_SPARE_S)
        _Stop.deadline = time.monotonic() + left_s - spare_s
        logger.debug(
            "%.0f min left to the job, %.0f s kept to save", left_s / 60, spare_s
        )
