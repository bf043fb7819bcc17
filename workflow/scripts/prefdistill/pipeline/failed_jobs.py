"""Print the one line of a job that failed on another machine.

A job prints its line itself (``run_job``), and Snakemake passes on what jobs on this
machine print. What a job on a cluster prints goes to a file of the cluster. So the
driver reads the line from the job's log and prints it. A job that died before its log
began, of a wrong hook or a missing Python, has its line in the cluster's file.

Imported by the Snakefile, so it stays light: the standard library.
"""

import logging
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from prefdistill.running.logs import FAILED

TAIL_BYTES, LONGEST_LINE = 65_536, 300
# Lines that say only that something failed before them.
_NOISE = re.compile(
    r"srun: error: .*: task|srun: Terminating|Exiting because a job|Complete log|"
    r"WorkflowError:?$|At least one job did not|Elapsed time|Shutting down"
)
_OWN_LINE = re.compile(r"^error: ")
_FAULT = re.compile(r"(?i)error|not found|cannot|can't|no such|denied|killed|cancelled")
_LINE = re.compile(rf" ERROR (?:\S+): {re.escape(FAILED)}(.*)")


def failure_of(log_path: str | Path) -> str | None:
    """Find the last line of failure in a job's log; None if there is none."""
    with suppress(OSError):  # a job that died before its log began has none
        text = Path(log_path).read_text(encoding="utf-8", errors="replace")
        lines = _LINE.findall(text)
        if lines:
            return lines[-1]
    return None


def last_words_of(cluster_log: str | Path) -> str:
    """Find the line that says best why a job died, in the cluster's own file of it."""
    try:
        with open(cluster_log, "rb") as handle:
            handle.seek(max(0, os.fstat(handle.fileno()).st_size - TAIL_BYTES))
            text = handle.read().decode("utf-8", errors="replace")
    except OSError:
        return "the job died before it wrote anything"
    lines = [" ".join(line.split()) for line in text.splitlines()]
    lines = [line for line in lines if line and not _NOISE.match(line)]
    for pattern in (_OWN_LINE, _FAULT):
        for line in reversed(lines):
            if pattern.search(line):
                return line.removeprefix("error: ")[:LONGEST_LINE]
    return lines[-1][:LONGEST_LINE] if lines else "the job died without a word"


def explain(log: str | Path, cluster_log: str | Path) -> tuple[str, str | Path] | None:
    """Find why a job failed on a cluster, and the file that says it.

    Args:
        log: The job's log. An earlier job may have written it.
        cluster_log: The cluster's file of this job, named after the job's number.

    Returns:
        None if the job's log began but names no failure: it was killed or stopped,
        which the cluster's status says.
    """
    text = failure_of(log)
    if _is_of(log, Path(cluster_log)):
        return None if text is None else (text, log)
    return last_words_of(cluster_log), cluster_log


def _is_of(log: str | Path, cluster_log: Path) -> bool:
    """Tell whether a log names the cluster's job (``logs.log_place``)."""
    with suppress(OSError):
        text = Path(log).read_text(encoding="utf-8", errors="replace")
        return re.search(rf"SLURM_JOB_ID={cluster_log.stem}\b", text) is not None
    return False


class FailedJobs(logging.Handler):
    """Print the one line of each job that an executor reports as failed.

    Snakemake logs a failed job as an event ``job_error``, with the job's log files
    first among ``log``, and the cluster's file last. ``rule_msg`` is what an executor
    says about the failure. Only the local executor leaves it empty, and its jobs have
    printed their line already.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print the line, if the record is about such a job and a file has one."""
        fields = vars(record)
        if fields.get("event") != "job_error" or not fields.get("rule_msg"):
            return
        logs = [path for path in fields["log"] if path]
        if len(logs) < 2:  # the cluster refused the job and said why
            return
        found = explain(logs[0], logs[-1])
        if found is not None:
            print(f"error: {found[0]} (log: {found[1]})", file=sys.stderr, flush=True)
