"""Keep a process going when its terminal is lost.

The Snakefile imports this module, so only the standard library is imported here.
"""

import io
import sys
from contextlib import suppress
from typing import TextIO

_replaced: list[TextIO] = []  # a stream closes its file when nobody holds it


class _Terminal(io.FileIO):
    """A terminal or pipe that takes every write, also when nobody reads it any more."""

    def write(self, data: bytes) -> int:
        """Write what can be written, and call all of it written."""
        with suppress(OSError):
            return super().write(data)
        return memoryview(data).nbytes


def survive_lost_terminal() -> None:
    """Have ``print`` and logging to the terminal never fail.

    After a lost terminal, or the end of a pipe's reader, each write fails (EIO, EPIPE).
    That must not end a job that saves its state.
    """
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        with suppress(OSError, ValueError, AttributeError):
            if stream.fileno() == number:  # not replaced by a test
                terminal = _Terminal(number, "w", closefd=False)
                text = io.TextIOWrapper(
                    terminal, stream.encoding, "backslashreplace", line_buffering=True
                )
                setattr(sys, name, text)
                _replaced.append(stream)
