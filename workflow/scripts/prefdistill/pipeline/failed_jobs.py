"""Print the one line of a job that failed on another machine.

A job prints its line itself (``run_job``), and Snakemake passes on what jobs on this
machine print. What a job on a cluster prints goes to a file of the cluster. So the
driver reads the line from the job's log and prints it.

Imported by the Snakefile, so it stays light: the standard library.
"""

import logging
import re
import sys
from contextlib import suppress
from pathlib import Path

from prefdistill.running.logs import FAILED

_LINE = re.compile(rf" ERROR (?:\S+): {re.escape(FAILED)}(.*)")


def failure_of(log_path: str | Path) -> str | None:
    """Find the last line of failure in a job's log; None if there is none."""
    with suppress(OSError):  # a job that died before its log began has none
        text = Path(log_path).read_text(encoding="utf-8", errors="replace")
        lines = _LINE.findall(text)
        if lines:
            return lines[-1]
    return None


class FailedJobs(logging.Handler):
    """Print the one line of each job that an executor reports as failed.

    Snakemake logs a failed job as an event ``job_error``, with the job's log files
    first among ``log``. ``rule_msg`` is what an executor says about the failure. Only
    the local executor leaves it empty, and its jobs have printed their line already.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print the line, if the record is about such a job and its log has one."""
        fields = vars(record)
        if fields.get("event") != "job_error" or not fields.get("rule_msg"):
            return
        for path in fields["log"][:1]:
            text = failure_of(path)
            if text is not None:
                print(f"error: {text} (log: {path})", file=sys.stderr, flush=True)
