"""The driver's part in clear errors: the one line of a job that failed elsewhere.

A job prints its line itself (``job.run_job``), and Snakemake passes on what jobs of
this machine print. What a job on a cluster prints ends in a file of the cluster, so the
driver takes the line from the job's log and prints it.

Only the standard library is imported here, as the Snakefile uses this module.
"""

import logging
import re
import sys
from contextlib import suppress
from pathlib import Path

from prefdistill.running.logs import FAILED

_LINE = re.compile(rf" ERROR (?:\S+): {re.escape(FAILED)}(.*)")


def failure_of(log_path: str | Path) -> str | None:
    """Find the line that a failed job left in its log last. None if there is none."""
    with suppress(OSError):
        text = Path(log_path).read_text(encoding="utf-8", errors="replace")
        lines = _LINE.findall(text)
        if lines:
            return lines[-1]
    return None


class FailedJobs(logging.Handler):
    """Print the one line of each job that an executor reports as failed.

    Snakemake logs a failed job as an event ``job_error``, with the job's log files
    first among ``log``. ``rule_msg``, what an executor says about the failure, is left
    empty by the local one alone, whose jobs have printed their line already.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print the line, if the record is of such a job and its log has one."""
        fields = vars(record)
        if fields.get("event") != "job_error" or not fields.get("rule_msg"):
            return
        for path in fields["log"][:1]:
            text = failure_of(path)
            if text is not None:
                print(f"error: {text} (log: {path})", file=sys.stderr, flush=True)
