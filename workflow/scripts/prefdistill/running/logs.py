"""A job's log, and the one line that says why the job failed.

Only the standard library is imported here, as the Snakefile uses this module.
"""

import logging
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from prefdistill.errors import DamagedFile, UserError, disk_fault
from prefdistill.running.rule_lookup import rerun_advice

# The name on the lines about the job itself. ``overview`` finds them by it.
JOB_LOGGER = "prefdistill.running.job"
FAILED = "failed: "  # stands before an error's one line; see ``failures``

logger = logging.getLogger(JOB_LOGGER)


def log_to(log_path: Path, prefix: str = "") -> logging.Handler:
    """Log to the file and the terminal.

    A line on the terminal begins with the job's name, as several jobs may run at once.

    Returns:
        The terminal's handler.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    logging.raiseExceptions = False  # a full disk is said once, not by each log line
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
    """Log where the job runs, so that a failure can be looked up there."""
    names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "CUDA_VISIBLE_DEVICES")
    known = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    logger.debug("%s", " ".join([f"on {socket.gethostname()}", *known]))


def keep_log(log_path: Path) -> None:
    """Append the log to that of the job's earlier runs, as Snakemake deletes it."""
    earlier = log_path.with_suffix(".earlier.log")
    with suppress(OSError), open(earlier, "a", encoding="utf-8") as log:
        log.write(log_path.read_text(encoding="utf-8") + "\n")


def error_line(error: Exception) -> str:
    """Describe an error in one line, with the remedy for who runs the workflow.

    A damaged file that a rule made is to be deleted, so that the rule makes it again.
    An error that nobody foresaw begins with its type.
    """
    if isinstance(error, DamagedFile):
        advice = rerun_advice(error.path)
        return f"{error.path}: {error.what}; {advice}" if advice else str(error)
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return disk_fault(error) or kind + " ".join(str(error).split())
