"""Whole files: every writer goes through ``atomic_path``, every reader ``reading``.

Only the standard library is imported here, as the Snakefile uses this module too.
"""

import csv
import errno
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prefdistill.errors import DamagedFile, UserError

RESULTS = "results"  # where rules write
_UMASK = os.umask(0)  # the only way to read it is to set it
os.umask(_UMASK)
_HOST = re.sub(r"[^\w-]", "_", socket.gethostname())
_TEMPORARY_NAME = re.compile(r"\..+\.([\w-]+)\.(\d+)\.[0-9a-f]{8}\.tmp")
_LEFT_OVER_S = 24 * 3600
LONGEST_REASON = 300  # characters of what a library says
# What a compressed file may unpack to: in any case, and as a multiple of its size.
MOST_UNPACKED_BYTES, MOST_RATIO = 1 << 30, 200


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let the body's input and output errors leave as ``OSError`` with a path.

    A failed write or fsync does not say of which file, and a temporary path means
    nothing to the user. Libraries in Rust raise exceptions of their own, whose text
    holds the system's error only as a number.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            error.errno = errno.ENOENT  # some libraries leave it out
        named = Path(error.filename2 or error.filename or "")
        hidden = any(map(_TEMPORARY_NAME.fullmatch, named.parts))
        if error.errno and (hidden or not named.name):
            error.filename, error.filename2 = str(path), None
        raise
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Say in one line that a file is damaged, whatever a library raises on it.

    Args:
        path: The file that the body reads.
        what: What it should be, such as ``"a whole parquet file"``.

    Raises:
        DamagedFile: If the body fails, except for an error of the system or a lack of
            memory. Also if the path is a link out of ``results``.
    """
    _check_inside(path)
    try:
        with naming(path):
            yield
    except Exception as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        if len(reason) > LONGEST_REASON:
            reason = f"{reason[:LONGEST_REASON]}..."
        raise DamagedFile(path, f"not {what} ({reason})") from error


def _check_inside(path: str | Path) -> None:
    """Refuse a link that leads out of ``results``, which itself may be a link.

    The workflow makes no such links, so the file is not what its name says.
    """
    results, place = Path(RESULTS).absolute(), Path(os.path.abspath(path))
    real = place.resolve()
    if place.is_relative_to(results) and not real.is_relative_to(results.resolve()):
        raise DamagedFile(path, f"a link out of {RESULTS}, to {real}")


def check_unpacked(n_unpacked: int, n_bytes: int) -> None:
    """Refuse a compressed file that would fill the memory.

    Args:
        n_unpacked: Bytes that it would take, as it says itself.
        n_bytes: Its size.

    Raises:
        ValueError: If no file of the workflow's own is like that.
    """
    if n_unpacked > max(MOST_UNPACKED_BYTES, MOST_RATIO * n_bytes):
        raise ValueError(
            f"its {n_bytes} bytes would become {n_unpacked:.2g}; is it a zip bomb?"
        )


def not_finite(path: str | Path, what: str) -> UserError:
    """Build the error of a writer that refuses NaN and infinity."""
    return UserError(f"{path}: not written, as {what} is NaN or infinite")


def _is_left_over(path: Path) -> bool:
    """Return whether a temporary folder's job is dead.

    On this host its process tells, on another one files that nobody touched for a day.
    """
    found = _TEMPORARY_NAME.fullmatch(path.name)
    if found is None:
        return False
    host, process = found.groups()
    if host == _HOST:
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it lives, as another user
        return False
    newest = max(each.stat().st_mtime for each in (path, *path.iterdir()))
    return time.time() - newest > _LEFT_OVER_S


@contextmanager
def temporary_folder(parent: str | Path, name: str = "scratch") -> Iterator[Path]:
    """Yield a new hidden folder in ``parent`` that is removed at the end.

    Its name is unique over hosts and processes. What killed jobs left behind in
    ``parent`` is removed first.
    """
    parent = Path(parent)
    folder = parent / f".{name}.{_HOST}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    with naming(parent):
        parent.mkdir(parents=True, exist_ok=True)
        for path in parent.glob(".*.tmp"):
            with suppress(OSError):  # another job may be removing it too
                if _is_left_over(path):
                    shutil.rmtree(path)
        folder.mkdir()
    try:
        with naming(parent):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path in a temporary folder; on success fsync it and rename it.

    Whatever interrupts the body, the target is absent, its former self, or whole. The
    file has a folder to itself, as safetensors writes to a temporary file of its own
    beside the one it is given.
    """
    path = Path(path)
    with temporary_folder(path.parent, path.name) as folder, naming(path):
        temporary = folder / path.name
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fchmod(handle.fileno(), 0o666 & ~_UMASK)  # safetensors writes 0600
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        parent = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    """Write rows with empty cells for None and six decimals for floats."""
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as handle,
    ):
        writer = csv.DictWriter(handle, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {k: f"{v:.6f}" if isinstance(v, float) else v for k, v in row.items()}
            )
