"""Run a writer in a forked child while a write, fsync, rename or folder call fails.

A write fails by a limit on the size of files (RLIMIT_FSIZE), which applies to every
library. If SIGXFSZ is ignored, the write fails as on a full disk; by default the
process dies within the write. Calls of ``os`` are replaced.
"""

import errno
import json
import os
import resource
import secrets
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from prefdistill.errors import disk_fault

CALLS = ("mkdir", "open", "fsync", "replace")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
DONE, SAID_IN_ONE_LINE, SAID_BADLY = 0, 3, 4


@dataclass(frozen=True)
class Trace:
    """The calls and files of an undisturbed writer.

    Attributes:
        n_calls: Number of calls of each of ``CALLS``.
        sizes: Bytes of each renamed file, by temporary folder in their order. A folder
            without a renamed file has the size of the largest.
    """

    n_calls: dict[str, int]
    sizes: list[int]


@dataclass(frozen=True)
class FailedCall:
    """A fault at the n-th call of an ``os`` function: an error, or a kill around it."""

    name: str
    number: int
    how: int | str  # an errno, "kill before" or "kill after"


@dataclass(frozen=True)
class FailedWrite:
    """A limit on the size of files, from the n-th temporary folder on."""

    number: int
    n_bytes: int
    deadly: bool


Fault = FailedCall | FailedWrite


def faults_of(trace: Trace) -> Iterator[Fault]:
    """Yield a fault at every call, and at sizes spread over every file."""
    error = cycle(ERRORS)
    for name, n_calls in trace.n_calls.items():
        for number in range(n_calls):
            yield FailedCall(name, number, next(error))
            yield FailedCall(name, number, "kill before")
            yield FailedCall(name, number, "kill after")
    for number, size in enumerate(trace.sizes):
        for n_bytes in sorted({0, 1, size // 3, 2 * size // 3, size - 1}):
            if n_bytes < size:
                yield FailedWrite(number, n_bytes, deadly=False)
                yield FailedWrite(number, n_bytes, deadly=True)


class _Calls:
    """Count the calls of a child, and make the chosen one fail."""

    def __init__(self, fault: Fault | None) -> None:
        self.fault, self.n_calls = fault, Counter()
        self.folders: list[str] = []
        self.size_of: dict[str, int] = {}
        self.originals = {name: getattr(os, name) for name in CALLS}
        for name in CALLS:
            setattr(os, name, self._stand_in(name))
        self.token_hex, secrets.token_hex = secrets.token_hex, self._new_folder

    def _new_folder(self, n_bytes: int) -> str:
        """Draw the random part of a temporary folder's name: a new file begins."""
        fault = self.fault
        if isinstance(fault, FailedWrite) and fault.number == len(self.folders):
            action = signal.SIG_DFL if fault.deadly else signal.SIG_IGN
            signal.signal(signal.SIGXFSZ, action)
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.n_bytes, hard))
        self.folders.append(self.token_hex(n_bytes))
        return self.folders[-1]

    def _stand_in(self, name: str) -> Callable:
        def call(*arguments, **options):
            number, fault = self.n_calls[name], self.fault
            self.n_calls[name] += 1
            if name == "replace":
                folder = Path(arguments[0]).parent.name
                self.size_of[folder] = os.stat(arguments[0]).st_size
            meant = isinstance(fault, FailedCall) and (
                (fault.name, fault.number) == (name, number)
            )
            if meant and isinstance(fault.how, int):
                raise OSError(fault.how, os.strerror(fault.how))
            if meant and fault.how == "kill before":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return self.originals[name](*arguments, **options)
            finally:
                if meant:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    def trace(self) -> dict:
        """Return the fields of ``Trace``."""
        largest = max(self.size_of.values(), default=0)
        sizes = [
            next((n for name, n in self.size_of.items() if random in name), largest)
            for random in self.folders
        ]
        return {"n_calls": dict(self.n_calls), "sizes": sizes}


def in_child(
    write: Callable[[Path], None], folder: Path, fault: Fault | None = None
) -> tuple[int, Trace | None]:
    """Run a writer in a forked child.

    Returns:
        Its exit status (negative: the signal that ended it) and, if it succeeded, its
        trace. A failure with a correct line gives ``SAID_IN_ONE_LINE``.
    """
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        status = SAID_BADLY
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            calls = _Calls(fault)
            write(folder)
            os.write(send, json.dumps(calls.trace()).encode())
            status = DONE
        except BaseException as error:
            line = disk_fault(error) or ""
            if line.startswith(str(folder)) and "\n" not in line:
                status = SAID_IN_ONE_LINE
            else:
                os.write(send, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(status)
    os.close(send)
    with open(receive, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status != SAID_BADLY, f"{fault}: {said}"
    return status, Trace(**json.loads(said)) if status == DONE else None
