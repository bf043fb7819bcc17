import os
import subprocess
import sys

import pytest
from job_samples import JOB, wait_for

from prefdistill.running.code_digests import SCRIPTS


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Function that starts a copy of the job in the test's folder."""
    (tmp_path / "in.txt").touch()
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    started = []

    def start(steps=3, params="1", wait=True, **environment):
        process = subprocess.Popen(
            # Whoever started the tests may have them ignore signals (nohup, &).
            ["env", "--default-signal=INT,HUP,QUIT",
             sys.executable, "job.py", str(steps), params],
            cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(SCRIPTS)} | environment,
        )  # fmt: skip
        started.append(process)
        if wait:
            wait_for(process, "started")
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
