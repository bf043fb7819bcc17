"""What every job shares: logging, one-line errors, progress, signals, threads."""

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


class UserError(Exception):
    """A mistake the user can mend; its text is one line that says where and how."""


class Interrupted(Exception):
    """Raised once work is saved after SIGTERM or SIGUSR1; the job can be resumed."""


class _StopFlag:
    """Set by a signal, read by long loops between two steps."""

    signal_name: str | None = None


def stop_requested() -> bool:
    """Whether SIGTERM or SIGUSR1 has arrived since the job began."""
    return _StopFlag.signal_name is not None


def _request_stop(number: int, _frame: object) -> None:
    _StopFlag.signal_name = signal.Signals(number).name


def set_threads(n_threads: int) -> None:
    """Bound the threads of numerical libraries; call before they are imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(n_threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def hide_unused_imports(*names: str) -> None:
    """Make optional packages look absent, so that PEFT does not spend seconds on them.

    Call before ``peft`` is imported and never in a job that quantises.
    """
    for name in names or ("gptqmodel", "optimum", "torchao", "sklearn"):
        sys.modules.setdefault(name, None)


@contextmanager
def run_job(log_path: str | Path, n_threads: int = 1) -> Iterator[None]:
    """Run a script's body with logging to its file and the terminal.

    A ``UserError`` ends the job with one line on the terminal and the log's path; any
    other exception does too, and leaves its traceback in the log. After SIGTERM or
    SIGUSR1 the body may save and raise ``Interrupted``, which ends the job with 143.
    """
    log_path = Path(log_path)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    set_threads(n_threads)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    to_file = logging.FileHandler(log_path, mode="a", encoding="utf-8")
    to_file.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[to_file, to_terminal], force=True)
    logging.captureWarnings(True)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _request_stop)
    started = time.monotonic()
    try:
        yield
    except Interrupted as stop:
        logger.warning("stopped by %s: %s", _StopFlag.signal_name, stop)
        sys.exit(143)
    except Exception as error:
        text = " ".join(str(error).split())
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        to_terminal.setLevel(logging.CRITICAL)
        logger.exception("failed")
        print(f"error: {kind}{text} (log: {log_path})", file=sys.stderr, flush=True)
        sys.exit(1)
    logger.info("done in %.1f s", time.monotonic() - started)


class Progress:
    """Log progress with throughput and the time left, at most once an interval.

    Args:
        total: Number of units in all.
        unit: What is counted, in the plural, such as ``"steps"``.
        done: Units finished by an earlier, interrupted job; they do not count
            towards the throughput.
        every_s: Least number of seconds between two lines.
    """

    def __init__(
        self, total: int, unit: str, *, done: int = 0, every_s: float = 10.0
    ) -> None:
        self.total, self.unit, self.done, self.every_s = total, unit, done, every_s
        self._first_done, self._started = done, time.monotonic()
        self._last_line, self._n_tokens = self._started, 0

    def update(self, n_units: int = 1, n_tokens: int = 0, note: str = "") -> None:
        """Count finished units, and their useful tokens, and log when it is time."""
        self.done += n_units
        self._n_tokens += n_tokens
        now = time.monotonic()
        if now - self._last_line < self.every_s and self.done < self.total:
            return
        self._last_line = now
        elapsed = max(now - self._started, 1e-9)
        rate = max(self.done - self._first_done, 1e-9) / elapsed
        eta_s = int((self.total - self.done) / rate)
        tokens = f", {self._n_tokens / elapsed:,.0f} tokens/s" if self._n_tokens else ""
        logger.info(
            "%d/%d %s (%.0f %%)%s, ETA %d:%02d:%02d%s",
            self.done, self.total, self.unit, 100 * self.done / max(self.total, 1),
            tokens, eta_s // 3600, eta_s % 3600 // 60, eta_s % 60,
            f", {note}" if note else "",
        )  # fmt: skip
