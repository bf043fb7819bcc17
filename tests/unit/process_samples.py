"""Start the jobs of ``two_processes``, and wait for their end."""

import os
import subprocess
import sys
from pathlib import Path

import two_processes

from prefdistill.running.code_digests import SCRIPTS

TIMEOUT_S = 120


def start(folder, *arguments, **environment):
    script = Path(two_processes.__file__)
    return subprocess.Popen(
        [sys.executable, script, folder, *map(str, arguments)],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPTS)}
        | environment,
    )  # fmt: skip


def end(process):
    """Exit status and output of a job that must not hang."""
    output, _ = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, output
