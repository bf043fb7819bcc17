"""Log the progress of long work, in lines that ``pipeline.job_states`` reads."""

import logging
import time

logger = logging.getLogger(__name__)


class Progress:
    """Log progress with throughput and the time left, at most once per interval.

    Args:
        total: Number of units of the whole work.
        unit: Name of a unit, in the plural, such as ``"steps"``.
        done: Units that an earlier, interrupted job finished; they do not count
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
        """Count finished units, and log a line if the interval is over.

        Args:
            n_units: Units finished since the last call.
            n_tokens: Useful tokens in them, without padding; 0 shows no throughput.
            note: Text at the end of the line.
        """
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
