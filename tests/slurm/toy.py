"""Use a toy cluster: read its records and jobs, and start a driver on it."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

REDUCED = Path(__file__).parents[1] / "chaos/chaos.yaml"
CONFIGS = ("config/demo.yaml", "reduced.yaml")
TEACHER = "results/teacher/llama/fold0/adapter_model.safetensors"


def slurm(*command: str) -> str:
    """Run one of Slurm's commands and return its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def jobs(folder: Path, rule: str = "") -> list[dict[str, str]]:
    """Read Slurm's records of a folder's jobs, or of one rule's, oldest first."""
    found = []
    for line in slurm("scontrol", "show", "job", "--oneliner").splitlines():
        record = dict(re.findall(r"(\w+(?:/\w+)?)=(\S*)", line))
        record["rule"] = re.sub(r"^rule_|_wildcards_.*", "", record.get("Comment", ""))
        if record.get("WorkDir") == str(folder) and rule in ("", record["rule"]):
            found.append(record)
    return sorted(found, key=lambda record: int(record["JobId"]))


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 240):
    """Wait for a condition and return its value.

    Raises:
        AssertionError: If it does not come true in time.
    """
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.3)
    raise AssertionError(f"not in {timeout_s} s: {what}")


class Driver:
    """``snakemake --profile slurm`` in a folder that holds a checkout and its results.

    Args:
        folder: Where it runs.
        arguments: More of Snakemake's.
        command: Other words for ``snakemake``.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        command: Sequence[str] = (sys.executable, "-m", "snakemake"),
    ) -> None:
        self.folder = folder
        self.log_path = folder / "terminal.txt"
        command = [
            *(*command, "--profile", "slurm", "--latency-wait", "5"),
            *("--slurm-init-seconds-before-status-checks", "2"),
            *arguments,
        ]
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=log, stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    @property
    def text(self) -> str:
        """Read everything that it has printed."""
        return self.log_path.read_text()

    def finish(self, timeout_s: float = 900) -> int:
        """Wait for its end; let jobs that are queued again start at once."""
        end = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < end, self.text[-4000:]
            for job in jobs(self.folder):
                if job["JobState"] == "PENDING" and job["Restarts"] != "0":
                    # Not checked: it may have started since it was listed.
                    update = ("scontrol", "update", f"JobId={job['JobId']}")
                    subprocess.run([*update, "StartTime=now"], check=False)
            time.sleep(1)
        return self.process.returncode


def job_log(folder: Path) -> str:
    """Read the logs of all runs of the long training job."""
    paths = (folder / "logs/train_teacher").glob("llama.fold0.*log")
    return "".join(path.read_text() for path in sorted(paths))
