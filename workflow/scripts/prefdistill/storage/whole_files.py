"""Write files that appear whole or not at all, and report damaged ones in one line.

Every writer uses ``atomic_path``, every reader ``reading``. The Snakefile imports this
module, so only the standard library is imported here.
"""

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prefdistill.errors import DamagedFile, UserError, one_line
from prefdistill.storage.hosts import PID_SPACE, has_ended

RESULTS = "results"  # where rules write
MANIFEST = "manifest.json"  # of a base model: lists its files, with their digests
_UMASK = os.umask(0)  # the only way to read it is to set it
os.umask(_UMASK)
_TEMPORARY_NAME = re.compile(r"\..+\.([\w-]+)\.(\d+)\.[0-9a-f]{8}\.tmp")
_LEFT_OVER_S = 24 * 3600
LONGEST_REASON = 300  # characters of a library's message that are shown
# A compressed file may always unpack to this many bytes, and otherwise to this multiple
# of its size.
MOST_UNPACKED_BYTES, MOST_RATIO = 1 << 30, 200
# Of a text file that is read at once. The largest tokenizer.json known has 35 MB.
MOST_TEXT_BYTES = 128 << 20
# Where a cell begins like this, a spreadsheet may run it as a formula. Blanks and
# apostrophes before it do not help, as a spreadsheet or a later import may drop them.
_FORMULA = re.compile(r"['\s]*[=+\-@＝＋－＠]|'*[\t\r\n]")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_SPLITTING = re.compile('[",;\t\r\n]')
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


class _Guard:
    """Hold the function that is asked as a write begins, and before a file appears."""

    check: Callable[[Path], None] = staticmethod(lambda path: None)


def guard_writes(check: Callable[[Path], None]) -> None:
    """Ask a function before every write of a file; it raises to refuse the write.

    A job that nobody waits for any more must not overwrite its successor's files.
    """
    _Guard.check = staticmethod(check)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Re-raise the body's input and output errors as ``OSError`` with the file's path.

    Args:
        path: The file that the user knows, whatever temporary file the body uses.

    Raises:
        OSError: If the body fails with an error of the system.
    """
    try:
        yield
    except OSError as error:
        # A failed write or fsync does not name its file, and a temporary path means
        # nothing to the user.
        if isinstance(error, FileNotFoundError):
            error.errno = errno.ENOENT  # some libraries leave it out
        named = Path(error.filename2 or error.filename or "")
        hidden = any(map(_TEMPORARY_NAME.fullmatch, named.parts))
        if error.errno and (hidden or not named.name):
            error.filename, error.filename2 = str(path), None
        raise
    except Exception as error:
        # Libraries in Rust raise their own exceptions, which hold the system's error
        # only as a number in the text.
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Report a damaged file in one line, whatever exception a library raises on it.

    Args:
        path: The file that the body reads.
        what: What it should be, such as ``"a whole parquet file"``.

    Raises:
        DamagedFile: If the body fails, or if the path is a link out of ``results``.
            Errors of the system and a lack of memory pass through unchanged.
    """
    _check_inside(path)
    try:
        with naming(path):
            yield
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise  # such as the signal to stop
        if isinstance(error, MemoryError) or getattr(error, "errno", None):
            raise
        reason = one_line(error) or type(error).__name__
        if len(reason) > LONGEST_REASON:
            reason = f"{reason[:LONGEST_REASON]}..."
        raise DamagedFile(path, f"not {what} ({reason})") from error


def _check_inside(path: str | Path) -> None:
    """Refuse a link that leads out of ``results``, which itself may be a link.

    The workflow makes no such links, so the file is not the one that a rule wrote.
    """
    results, place = Path(RESULTS).absolute(), Path(os.path.abspath(path))
    real = place.resolve()
    if place.is_relative_to(results) and not real.is_relative_to(results.resolve()):
        raise DamagedFile(path, f"a link out of {RESULTS}, to {real}")


def check_unpacked(n_unpacked: int, n_bytes: int) -> None:
    """Refuse a compressed file that would fill the memory.

    Args:
        n_unpacked: Size in bytes after unpacking, as the file's header says.
        n_bytes: Size in bytes on disk.

    Raises:
        ValueError: If it would unpack to more than any file of the workflow.
    """
    if n_unpacked > max(MOST_UNPACKED_BYTES, MOST_RATIO * n_bytes):
        raise ValueError(
            f"its {n_bytes} bytes would become {n_unpacked:.2g}; is it a zip bomb?"
        )


def not_finite(path: str | Path, what: str) -> UserError:
    """Build the error of a writer that refuses NaN and infinity."""
    return UserError(f"{path}: not written, as {what} is NaN or infinite")


def _is_left_over(path: Path) -> bool:
    """Tell whether a temporary folder's job is dead.

    Where process ids are the same as here, it is dead if its process has ended.
    Elsewhere, on another host or in another container, it counts as dead once its files
    were not touched for a day.
    """
    found = _TEMPORARY_NAME.fullmatch(path.name)
    if found is None:
        return False
    pid_space, process = found.groups()
    if pid_space == PID_SPACE:
        return has_ended(pid_space, int(process))
    newest = max(each.stat().st_mtime for each in (path, *path.iterdir()))
    return time.time() - newest > _LEFT_OVER_S


@contextmanager
def temporary_folder(parent: str | Path, name: str = "scratch") -> Iterator[Path]:
    """Yield a new hidden folder in ``parent``, and delete it at the end.

    Its name is unique over hosts, containers and processes. Folders that killed jobs
    left in ``parent`` are deleted first.
    """
    parent = Path(parent)
    folder = parent / f".{name}.{PID_SPACE}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
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
    """Yield a path in a temporary folder; on success, fsync the file and rename it.

    Whatever interrupts the body, the target is absent, unchanged, or whole.
    """
    path = Path(path)
    _Guard.check(path)  # before its folder is made
    # A folder, not only a file: safetensors writes to a temporary file of its own
    # beside the path that it is given.
    with temporary_folder(path.parent, path.name) as folder, naming(path):
        temporary = folder / path.name
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fchmod(handle.fileno(), 0o666 & ~_UMASK)  # safetensors writes 0600
            os.fsync(handle.fileno())
        _Guard.check(path)
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


def write_csv(
    path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]
) -> None:
    """Write rows as CSV, with empty cells for None and six decimals for floats.

    Args:
        path: The file.
        rows: One mapping per row, from columns to values.
        columns: The columns in their order.
    """

    def shown(value: Any) -> Any:
        return f"{value:.6f}" if isinstance(value, float) else value

    cells = ([shown(row.get(name)) for name in columns] for row in rows)
    write_csv_rows(path, columns, cells)


def write_csv_rows(
    path: Path, columns: Sequence[str], rows: Iterable[Iterable[str | float | None]]
) -> int:
    """Write rows as UTF-8 CSV with line ends of one line feed; None is an empty cell.

    A text that a spreadsheet would run as a formula gets an apostrophe before it. To
    undo that, drop the first character of each cell that ``_FORMULA`` matches and that
    starts with an apostrophe: such a cell always was marked.

    Args:
        path: The file.
        columns: The header.
        rows: One value per column. Floats are written with all their digits.

    Returns:
        The number of cells that were marked.

    Raises:
        UserError: If a text cannot be written so that every reader gets it back.
    """
    n_marked = 0
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as handle,
    ):
        handle.write(",".join(map(_quoted, columns)) + "\n")
        for row in rows:
            cells = ["" if value is None else str(value) for value in row]
            for place, cell in enumerate(cells):
                if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
                    cells[place] = f"'{cell}"
                    n_marked += 1
            try:
                handle.write(",".join(map(_quoted, cells)) + "\n")
            except ValueError as error:
                raise UserError(f"{path}: not written, as {error}") from error
    return n_marked


def _quoted(cell: str) -> str:
    """Quote a cell of CSV where a reader would otherwise split it.

    The csv module leaves a lone carriage return bare. Spreadsheets of some languages
    split at a semicolon.

    Raises:
        ValueError: If it holds NUL or half of a surrogate pair.
    """
    if _UNWRITABLE.search(cell):
        raise ValueError(f"{cell[:40]!a} holds NUL or half of a surrogate pair")
    return '"' + cell.replace('"', '""') + '"' if _SPLITTING.search(cell) else cell


def check_text_size(n_bytes: int) -> None:
    """Refuse a file that is larger than any text file of a model.

    Raises:
        ValueError: If it has more bytes.
    """
    if n_bytes > MOST_TEXT_BYTES:
        raise ValueError(f"larger than {MOST_TEXT_BYTES >> 20} MB")


def read_text(path: str | Path) -> str:
    """Read a small UTF-8 file.

    Raises:
        ValueError: If it is larger than any such file of a model, or not UTF-8.
    """
    with open(path, "rb") as handle:
        content = handle.read(MOST_TEXT_BYTES + 1)
    check_text_size(len(content))
    return content.decode("utf-8")


def is_panic(error: BaseException) -> bool:
    """Tell whether a library in Rust panicked, which raises no ``Exception``."""
    return type(error).__module__ == "pyo3_runtime"
