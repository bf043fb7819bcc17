"""A failed job is one line on the terminal, wherever it ran; its log has the rest."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from prefdistill.pipeline.failed_jobs import FailedJobs, failure_of

SCRIPTS = Path(__file__).resolve().parents[3] / "workflow/scripts"
JOB = """
import types
from prefdistill.errors import UserError
from prefdistill.running.job import guarded
job = types.SimpleNamespace(
    log=["logs/a.log"], threads=1, input=[], output=["out"], params={{}}
)
with guarded(job):
    raise {error}
"""
ERRORS = {
    'UserError("data.csv: row 3: no id; give it one")': (
        "data.csv: row 3: no id; give it one"
    ),
    'KeyError("two\\nlines")': "KeyError: 'two\\nlines'",
    'ValueError("two\\nlines")': "ValueError: two lines",
    'OSError(28, "full", "a.npz")': (
        "a.npz: no space left on its file system; free some and run the same command: "
        "earlier results are intact"
    ),
}


def run(folder, error):
    code = JOB.format(error=error)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(SCRIPTS), "SLURM_JOB_ID": "7"},
    )  # fmt: skip


def report(capsys, log, message, event=LogEvent.JOB_ERROR, slurm="logs/7.log"):
    """What the driver prints at an event of Snakemake's."""
    fields = {
        "event": event,
        "rule_msg": message,
        "log": [str(log), slurm and str(slurm)],
    }
    FailedJobs().handle(logging.makeLogRecord(fields))
    return capsys.readouterr().err


@pytest.mark.parametrize("error", ERRORS)
def test_a_failed_job_prints_one_line_and_logs_its_traceback(error, tmp_path, capsys):
    line = ERRORS[error]
    done = run(tmp_path, error)
    assert done.returncode == 1
    assert done.stderr == f"error: {line} (log: logs/a.log)\n"
    log = tmp_path / "logs/a.log"
    assert "Traceback (most recent call last)" in log.read_text()
    assert failure_of(log) == line
    # The driver prints the same line of a job that an executor of a cluster reports.
    assert (
        report(capsys, log, "SLURM-job '7' failed") == f"error: {line} (log: {log})\n"
    )


def test_the_last_failure_of_a_log_counts(tmp_path):
    for text in ("first", "second"):
        run(tmp_path, f'UserError("{text}")')
    assert failure_of(tmp_path / "logs/a.log") == "second"


def test_nothing_is_printed_where_there_is_no_line(tmp_path, capsys):
    log = tmp_path / "logs/a.log"
    assert report(capsys, log, "sbatch refused it", slurm=None) == ""
    run(tmp_path, 'UserError("x")')
    assert report(capsys, log, None) == ""  # this machine's: printed by the job
    assert report(capsys, log, "started", LogEvent.JOB_STARTED) == ""


LAST_WORDS = {
    "a hook that is not there": (
        "/var/spool/job/slurm_script: 4: .: cannot open hook.sh: No such file\n",
        "/var/spool/job/slurm_script: 4: .: cannot open hook.sh: No such file",
    ),
    "no python": (
        "slurm_script: 5: /gone/python: not found\n",
        "slurm_script: 5: /gone/python: not found",
    ),
    "a refusal on the node": (
        "Building DAG\nerror: config: folds.n: no\nsrun: error: vm: task 0: Exited\n",
        "config: folds.n: no",
    ),
    "the node": (
        "Building DAG\nslurmstepd: error: *** JOB 7 CANCELLED: NODE FAILURE ***\n",
        "slurmstepd: error: *** JOB 7 CANCELLED: NODE FAILURE ***",
    ),
    "silence": ("", "the job died without a word"),
    "a missing file": (None, "the job died before it wrote anything"),
}


@pytest.mark.parametrize("what", LAST_WORDS)
@pytest.mark.parametrize("earlier", [False, True])
def test_a_job_that_dies_before_its_log_is_explained(what, earlier, tmp_path, capsys):
    text, line = LAST_WORDS[what]
    log, slurm = tmp_path / "logs/a.log", tmp_path / "8.log"
    if earlier:  # the log of an earlier job, which failed for another reason
        run(tmp_path, 'UserError("x")')
    if text is not None:
        slurm.write_text(text)
    said = report(capsys, log, "SLURM-job '8' failed", slurm=slurm)
    assert said == f"error: {line} (log: {slurm})\n"
