"""Write a job's log, and describe in one line why the job failed.

The Snakefile imports this module, so only the standard library is imported here.
"""

import logging
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from prefdistill.errors import DamagedFile, UserError, disk_fault, one_line
from prefdistill.running.rule_lookup import rerun_advice

# ``pipeline.job_states`` finds the lines about the job itself by this logger's name.
JOB_LOGGER = "prefdistill.job"
# ``pipeline.failed_jobs`` finds an error's one line by this beginning.
FAILED = "failed: "

logger = logging.getLogger(JOB_LOGGER)


def log_to(log_path: Path, prefix: str = "") -> logging.Handler:
    """Log to a file and to the terminal.

    A line on the terminal begins with the job's name, as several jobs may run at once.

    Args:
        log_path: The file; lines are appended.
        prefix: Text before each message.

    Returns:
        The terminal's handler.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    logging.raiseExceptions = False  # or each log line would report a full disk again
    to_file = logging.FileHandler(log_path, mode="a", encoding="utf-8")
    to_file.setFormatter(
        logging.Formatter(f"%(asctime)s {prefix}%(levelname)s %(name)s: %(message)s")
    )
    to_terminal = logging.StreamHandler(sys.stderr)
    name = f"{log_path.parent.name} {log_path.stem}: {prefix}"
    to_terminal.setFormatter(logging.Formatter(f"{name}%(message)s"))
    to_terminal.setLevel(logging.INFO)
    logger.setLevel(logging.DEBUG)  # the file gets more than the terminal
    logging.basicConfig(level=logging.INFO, handlers=[to_file, to_terminal], force=True)
    logging.captureWarnings(True)
    return to_terminal


def log_place() -> None:
    """Log the host, Slurm job and GPUs, so that a failure can be looked up there."""
    names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "CUDA_VISIBLE_DEVICES")
    known = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    logger.debug("%s", " ".join([f"on {socket.gethostname()}", *known]))


def keep_log(log_path: Path) -> None:
    """Append the log to the log of earlier runs."""
    # Snakemake deletes a job's log before it runs the job again.
    earlier = log_path.with_suffix(".earlier.log")
    # The job already ends for a reason of its own, which a full disk must not hide.
    with suppress(OSError), open(earlier, "a", encoding="utf-8") as log:
        log.write(log_path.read_text(encoding="utf-8") + "\n")


def error_line(error: Exception) -> str:
    """Describe an error in one line, with the remedy for the workflow's user.

    An unforeseen error's line begins with its type.
    """
    if isinstance(error, DamagedFile):
        # A file that a rule made is best deleted: the rule then makes it again.
        advice = rerun_advice(error.path)
        return f"{error.path}: {error.what}; {advice}" if advice else str(error)
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return disk_fault(error) or kind + one_line(error)
