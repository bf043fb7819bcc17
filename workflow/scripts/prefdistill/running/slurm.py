"""Ask Slurm how long a job may still run, and have it requeue the job."""

import logging
import os
import re
import shutil
import subprocess

logger = logging.getLogger(__name__)

ANSWER_S = 30  # seconds to wait for an answer


def _ask(*command: str) -> subprocess.CompletedProcess | None:
    """Run one of Slurm's commands; None if it is missing or does not answer."""
    if shutil.which(command[0]) is None:
        return None
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=ANSWER_S
        )
    except subprocess.TimeoutExpired:
        return None


def parse_duration(text: str) -> float | None:
    """Parse ``[days-][[hours:]minutes:]seconds`` to seconds; None if it is no time."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)??(?:(\d+):)?(\d+)", text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def seconds_left() -> float | None:
    """Ask how many seconds this job has left; None outside Slurm or without a limit."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return None
    answer = _ask("squeue", "--noheader", "--jobs", job, "--format", "%L")
    return parse_duration(answer.stdout) if answer and not answer.returncode else None


def requeue() -> None:
    """Have Slurm end this job and queue it again under the same number.

    If Slurm refuses, the job ends at its time limit. Snakemake counts that as a failure
    and retries.
    """
    answer = _ask("scontrol", "requeue", os.environ["SLURM_JOB_ID"])
    if answer is not None and not answer.returncode:
        logger.info("queued again; Slurm ends this job now and restarts it later")
        return
    reason = answer.stderr if answer else "scontrol does not answer"
    logger.warning(
        "Slurm did not queue the job again (%s); waiting for its time limit, after "
        "which the driver counts a failure and retries",
        " ".join(reason.split()),
    )
