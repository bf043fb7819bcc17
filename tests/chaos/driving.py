"""Start the command of `make run`, find its processes, and measure their CPU time."""

import contextlib
import ctypes
import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = (ROOT / "config/demo.yaml", Path(__file__).with_name("chaos.yaml"))
PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent is killed (Linux).

    Then they can be found and waited for, and their CPU time is counted.
    """
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("prctl refused PR_SET_CHILD_SUBREAPER")


def heed_signals() -> None:
    """Undo that whoever started the tests has them ignore a signal (nohup, &)."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def cpu_seconds() -> float:
    """Sum the CPU time of all descendants of this process, ended ones included."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    total_s = usage.ru_utime + usage.ru_stime
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total_s += times.user + times.system
            total_s += times.children_user + times.children_system
    return total_s


class Driver:
    """The command of `make run`, as a process group of its own.

    Args:
        folder: Its working folder; ``terminal.txt`` there gets its terminal output.
        target: The target to make.
        configs: Configuration files to lay over those of ``CONFIGS``.
    """

    def __init__(self, folder: Path, target: str, *configs: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, "-m", "prefdistill", "run", target),
            *("--directory", folder),
            *("--snakefile", ROOT / "workflow/Snakefile", "--cores", "2"),
            *(
                "--profile",
                ROOT / "profiles/default",
                "--configfile",
                *CONFIGS,
                *configs,
            ),
        ]
        with open(folder / "terminal.txt", "ab") as terminal:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=terminal, stderr=terminal,
                start_new_session=True, preexec_fn=heed_signals,
            )  # fmt: skip
        self.pid = self.process.pid
        self.exit_code: int | None = None

    def runs(self) -> bool:
        """Return whether it still runs, and reap orphans that have ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            if pid == self.pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
                self.process.returncode = self.exit_code
        return self.exit_code is None

    def wait(self, seconds: float = float("inf")) -> bool:
        """Wait for its end up to some seconds; return False if it still runs."""
        deadline = time.monotonic() + seconds
        while self.runs():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def wait_for_orphans(self) -> None:
        """Wait until no descendant of this process is left."""
        while psutil.Process().children():
            self.runs()
            time.sleep(0.01)


def end_all() -> None:
    """Kill every descendant of this process."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def jobs() -> list[psutil.Process]:
    """Find the running Python processes of jobs, orphaned ones included."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may have ended just now
            if any(".snakemake/scripts/" in word for word in process.cmdline()):
                found.append(process)
    return found


def digests(folder: Path, *patterns: str) -> dict[str, str]:
    """Compute the SHA-256 of a run's files that match a pattern, by relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
    }


def clock(seconds: float) -> str:
    """Format a duration as h:mm:ss."""
    seconds = int(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
