"""Fork children of a warm process, and kill them at a chosen place.

The parent imports torch once. A child differs from a job's process only in that its
imports are done.
"""

import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefdistill.models.quick_imports import hide_unused_imports
from prefdistill.running.job import set_threads

ROOT = Path(__file__).resolve().parents[2]

CHILD_LIMIT_S = 300
MAX_DRAWS = 30  # a kill that comes too late is drawn again
KILLED = (-signal.SIGKILL, -signal.SIGXFSZ)


def prepare() -> None:
    """Make all children compute alike; call this before torch is imported."""
    set_threads(1)
    hide_unused_imports()
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("prefdistill.models").setLevel(logging.WARNING)
    import torch

    torch.set_num_threads(1)
    # After a fork, torch creates its thread pool again, which fails if two threads of a
    # model's loader need it first. So every child creates it at once.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class Child:
    """A forked process that runs ``body`` and ends with its exit status.

    Args:
        body: The work; its ``SystemExit`` is the child's exit status.
        log: Receives all output of the child.
    """

    def __init__(self, body: Callable[[], None], log: Path) -> None:
        sys.stdout.flush()
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            signal.alarm(CHILD_LIMIT_S)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            with open(log, "ab") as handle:
                os.dup2(handle.fileno(), 1)
                os.dup2(handle.fileno(), 2)
            body()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens if the child has ended."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for the exit status; a signal that ended the child is negative."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code


@dataclass(frozen=True)
class Place:
    """The n-th call of a function, ``before`` or ``after`` it.

    Attributes:
        owner: Module or class of the function.
        name: Name of the function.
        call: Which call, counted from 1.
        when: ``before`` or ``after``.
        file_limit: Bytes, or None. With a limit the process is not killed there. From
            there on files cannot grow beyond the limit, so it dies within a write.
    """

    owner: Any
    name: str
    call: int
    when: str
    file_limit: int | None = None

    def arm(self) -> None:
        """Make this process die there."""
        if self.file_limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        watch(self.owner, self.name, self._called)

    def _called(self, call: int, when: str) -> None:
        if (call, when) != (self.call, self.when):
            return
        if self.file_limit is None:
            os.kill(os.getpid(), signal.SIGKILL)
        size = self.file_limit
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def watch(owner: Any, name: str, called: Callable[[int, str], None]) -> None:
    """Call ``called(n, "before" or "after")`` around the n-th call of a function."""
    real, n_calls = getattr(owner, name), 0

    def watched(*arguments: Any, **named: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        mine = n_calls
        called(mine, "before")
        result = real(*arguments, **named)
        called(mine, "after")
        return result

    setattr(owner, name, watched)


def count_calls(calls: dict[str, tuple[Any, str]]) -> dict[str, int]:
    """Count the calls of functions, given by owner and name, from now on."""
    counts = dict.fromkeys(calls, 0)

    def counter(kind: str) -> Callable[[int, str], None]:
        return lambda call, when: counts.update({kind: call})

    for kind, (owner, name) in calls.items():
        watch(owner, name, counter(kind))
    return counts


FILE_CALLS = {
    "at an fsync": (os, "fsync"),
    "at a rename": (os, "replace"),
    "at a removal": (os, "unlink"),
}


def draw_place(
    kind: str,
    calls: dict[str, tuple[Any, str]],
    counts: dict[str, int],
    largest_file: int,
    rng: np.random.Generator,
) -> Place:
    """Draw a random place of a kind.

    Args:
        kind: A key of ``calls``, or ``in a write``.
        calls: Owner and name of the function of each kind.
        counts: How often an undisturbed run calls each.
        largest_file: Bytes of the largest file; a write is cut off before them.
        rng: Random generator.
    """
    if kind == "in a write":
        call = int(rng.integers(1, max(2, counts["at an fsync"])))
        limit = int(rng.integers(1, largest_file))
        return Place(*calls["at an fsync"], call, "after", limit)
    call = int(rng.integers(1, counts[kind] + 1))
    return Place(*calls[kind], call, ("before", "after")[rng.integers(2)])


def contents(folder: Path) -> dict[str, Any]:
    """Read every file below a folder: bytes, or a curve's records without seconds.

    The digest of a curve, in the records of its job's files, is left out too.
    Files in temporary folders may be half-written and are read as bytes.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "train.jsonl" and not path.parent.name.startswith("."):
            records = map(json.loads, path.read_text().splitlines())
            found[name] = [record | {"seconds": None} for record in records]
        elif path.parts[len(folder.parts)] == "records" and path.suffix == ".json":
            record = json.loads(path.read_text())
            for curve in [each for each in record["outputs"] if "train.jsonl" in each]:
                record["outputs"][curve] = None
            found[name] = record
        elif path.is_file():
            found[name] = path.read_bytes()
        elif not any(path.iterdir()):
            found[name] = "empty folder"
    return found


def differing(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """List the files that are missing, unexpected, or of other content."""
    names = sorted(found.keys() | expected.keys())
    return [name for name in names if found.get(name) != expected.get(name)]


class Tally:
    """The number of trials that held, and the failures of the others."""

    def __init__(self) -> None:
        self.n_held, self.failures = 0, []
        self.counts: Counter[str] = Counter()

    def add(self, name: str, problem: str | None) -> None:
        """Count a trial; ``problem`` is None if it held."""
        if problem is None:
            self.n_held += 1
        else:
            self.failures.append(f"{name}: {problem}")

    def __str__(self) -> str:
        return f"{self.n_held}/{self.n_held + len(self.failures)}"

    def report(self, title: str) -> None:
        """Print the counts by kind, a line per failure, and how many held."""
        for kind, count in sorted(self.counts.items()):
            print(f"  {kind}: {count}")
        for failure in self.failures:
            print(f"FAILED {failure}")
        print(f"{self} {title}", flush=True)


@contextmanager
def working_folder() -> Iterator[Path]:
    """Make a temporary folder, which is removed with all trials in it."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
