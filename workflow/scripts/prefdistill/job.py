"""What every job shares: logging, one-line errors, progress, signals, threads."""

import errno
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


_SAME_COMMAND = "and run the same command: earlier results are intact"
_GONE = f"bring it back {_SAME_COMMAND}"
# What the system says of a file system that fails a job, and what to do about it.
_DISK_FAULTS = {
    errno.ENOSPC: f"no space left on its file system; free some {_SAME_COMMAND}",
    errno.EDQUOT: f"the quota on its file system is used up; free some {_SAME_COMMAND}",
    errno.EFBIG: "larger than files may be here (ulimit -f, or the file system's own "
    f"limit); raise that or write elsewhere {_SAME_COMMAND}",
    errno.EROFS: f"its file system is read-only; make it writable {_SAME_COMMAND}",
    errno.EACCES: f"permission denied; give this user access {_SAME_COMMAND}",
    errno.EPERM: f"not permitted; give this user access {_SAME_COMMAND}",
    errno.EIO: f"its disk or server failed; see to it (dmesg) {_SAME_COMMAND}",
    errno.ESTALE: f"its server no longer knows it; mount it again {_SAME_COMMAND}",
    errno.ENOENT: f"not there, or no longer; {_GONE}",
    errno.ENOTDIR: f"a part of its path is not a folder; {_GONE}",
    errno.EEXIST: f"cannot be made a folder, as something is there; {_GONE}",
}


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


def disk_fault(error: BaseException) -> str | None:
    """One line on an error that is the file system's: the path and what to do."""
    if not isinstance(error, OSError) or error.errno not in _DISK_FAULTS:
        return None
    path = error.filename2 or error.filename  # of a copy or rename, where it goes
    return f"{path}: {_DISK_FAULTS[error.errno]}" if path is not None else None


def hide_unused_imports(*names: str) -> None:
    """Make optional packages look absent, so that PEFT does not spend seconds on them.

    Call before ``peft`` is imported and never in a job that quantises.
    """
    for name in names or ("gptqmodel", "optimum", "torchao", "sklearn"):
        sys.modules.setdefault(name, None)


@contextmanager
def run_job(
    log_path: str | Path, n_threads: int = 1, *, online: bool = False
) -> Iterator[None]:
    """Run a script's body with logging to its file and the terminal.

    A ``UserError`` ends the job with one line on the terminal and the log's path; any
    other exception does too, and leaves its traceback in the log. After SIGTERM or
    SIGUSR1 the body may save and raise ``Interrupted``, which ends the job with 143.

    Args:
        log_path: Where the log is appended.
        n_threads: Bound of the threads of numerical libraries.
        online: Whether the job may ask the hub; others do not even hold its token.
    """
    log_path = Path(log_path)
    log_path.parent.mkdir(parents=True, exist_ok=True)
    set_threads(n_threads)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not online:
        os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
        os.environ.pop("HF_TOKEN", None)
        os.environ.pop("HUGGING_FACE_HUB_TOKEN", None)
    logging.raiseExceptions = False  # a full disk is said once, not by each log line
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
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        text = disk_fault(error) or kind + " ".join(str(error).split())
        to_terminal.setLevel(logging.CRITICAL)
        logger.exception("failed")
        print(f"error: {text} (log: {log_path})", file=sys.stderr, flush=True)
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
