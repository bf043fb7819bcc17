"""When a job has to save and stop: a signal came, or its time is nearly over."""

import logging
import math
import signal
import time

from prefdistill.running.logs import JOB_LOGGER
from prefdistill.running.slurm import seconds_left

logger = logging.getLogger(JOB_LOGGER)

TIME_LIMIT = "the time limit"
# This share of the time left, within these bounds, is kept for one step and one save.
SPARE_SHARE, MIN_SPARE_S, MAX_SPARE_S = 0.05, 15.0, 300.0


class _Stop:
    """Why this process has to stop: set by a signal or a clock, read by long loops."""

    reason: str | None = None
    deadline: float = math.inf


def stop_requested() -> bool:
    """Return whether to save and stop: a signal came, or the time is nearly over."""
    if _Stop.reason is None and time.monotonic() >= _Stop.deadline:
        _Stop.reason = TIME_LIMIT
    return _Stop.reason is not None


def stop_reason() -> str | None:
    """Return the signal's name or ``TIME_LIMIT``. None if nothing asked to stop."""
    return _Stop.reason


def request_stop(reason: str) -> None:
    """Have long loops save and stop. The first reason is kept."""
    _Stop.reason = _Stop.reason or reason


def _on_signal(number: int, _frame: object) -> None:
    request_stop(signal.Signals(number).name)
    if number == signal.SIGINT:  # whoever presses Ctrl-C twice cannot wait
        signal.signal(number, signal.SIG_DFL)


def stop_on(*numbers: signal.Signals) -> None:
    """Have long loops save and stop when one of these signals comes."""
    for number in numbers:
        signal.signal(number, _on_signal)


def watch_time_limit() -> None:
    """Ask Slurm when it ends this job, and plan to stop some time before that."""
    left_s = seconds_left()
    if left_s is not None:
        spare_s = min(max(MIN_SPARE_S, SPARE_SHARE * left_s), MAX_SPARE_S)
        _Stop.deadline = time.monotonic() + left_s - spare_s
        logger.debug(
            "%.0f min left to the job, %.0f s kept to save", left_s / 60, spare_s
        )
