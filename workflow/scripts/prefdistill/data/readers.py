"""Read rows of one file: CSV or JSON lines, plain or compressed, or parquet.

Each reader is a generator of ``RawRow`` in bounded memory, and fills the counts of its
file on the way. ``pairs`` parses the values.
"""

import csv
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from prefdistill.data.cells import (
    LONE_SURROGATE,
    MAX_CELL_CHARACTERS,
    CellFault,
    quote_short,
)
from prefdistill.data.pairs import (
    ROW_COLUMNS,
    ImportedFile,
    RawRow,
    match_columns,
    used_columns,
)
from prefdistill.data.parquet_rows import read_parquet_rows
from prefdistill.data.unpacking import open_bytes
from prefdistill.errors import UserError, one_line

# One row of CSV or JSON lines, in characters or bytes.
MAX_ROW_BYTES = 32 << 20
MOST_BLANK_LINES = 1_000_000

# First bytes of files that are not plain UTF-8 text: the fault and its remedy. UTF-32
# comes before UTF-16, since the mark of UTF-32 starts with that of UTF-16.
_FOREIGN_STARTS = {
    b"\x00\x00\xfe\xff": "is UTF-32; save it as UTF-8",
    b"\xff\xfe\x00\x00": "is UTF-32; save it as UTF-8",
    b"\xff\xfe": "is UTF-16; save it as UTF-8",
    b"\xfe\xff": "is UTF-16; save it as UTF-8",
    b"\x1f\x8b": "is gzip-compressed; name it .csv.gz",
    b"\x28\xb5\x2f\xfd": "is zstd-compressed; name it .csv.zst",
    b"PK\x03\x04": "is a zip archive or a spreadsheet; unpack or export it as CSV",
    b"\xd0\xcf\x11\xe0": "is an old spreadsheet; export it as CSV",
    b"PAR1": "is a parquet file; name it .parquet",
}
# Suffix of a compressed file: the compression's name and first bytes.
_COMPRESSIONS = {
    ".gz": ("gzip", b"\x1f\x8b"),
    ".zst": ("zstd", b"\x28\xb5\x2f\xfd"),
}
# Suffixes of known kinds that are not read: the fault and its remedy.
_UNSUPPORTED = {
    ".xlsx": "is a spreadsheet; export it as CSV in UTF-8",
    ".xls": "is a spreadsheet; export it as CSV in UTF-8",
    ".ods": "is a spreadsheet; export it as CSV in UTF-8",
    ".zip": "is a zip archive; unpack it and name the file inside",
    ".json": "is one JSON document; write one object per line and name it .jsonl",
    ".tsv": "is separated by tabs; write it with commas and name it .csv",
}
# Fragments of the csv module's messages, and what users are told in their place.
_CSV_FAULTS = {
    "unexpected end of data": "a quote is opened and never closed",
    "expected after": "a quote inside a quoted cell is not doubled",
    "row larger than": f"is larger than {MAX_ROW_BYTES >> 20} MB; "
    "probably a quote is opened and never closed",
    "field larger than": f"a cell is larger than {MAX_CELL_CHARACTERS >> 20} MB; "
    "probably a quote is opened and never closed",
}


def _open_csv(path: Path, encoding_errors: str) -> io.TextIOWrapper:
    # utf-8-sig drops a byte order mark; newline="" leaves line ends to the csv module.
    return io.TextIOWrapper(
        open_bytes(path), encoding="utf-8-sig", errors=encoding_errors, newline=""
    )


class _Lines:
    """Iterate over the lines of a CSV file, and stop at a row that is too large.

    Args:
        handle: The file.

    Attributes:
        n_characters: Number of characters since it was last set to 0.
    """

    def __init__(self, handle: TextIO) -> None:
        self._handle, self.n_characters = handle, 0

    def __iter__(self) -> Iterator[str]:
        while line := self._handle.readline(MAX_ROW_BYTES + 1):
            self.n_characters += len(line)
            if self.n_characters > MAX_ROW_BYTES:
                raise csv.Error("row larger than the limit")
            yield line


def _check_start(path: Path, counts: ImportedFile) -> None:
    """Refuse empty files and foreign formats by their first bytes; count BOM and CRLF.

    Raises:
        UserError: If the file is empty, or not what its name says.
    """
    if path.suffix.lower() in _COMPRESSIONS:
        name, magic = _COMPRESSIONS[path.suffix.lower()]
        with open(path, "rb") as packed:
            first = packed.read(4)
        if first and not first.startswith(magic):
            raise UserError(
                f"{path}: is not {name}-compressed; drop {path.suffix} from its name"
            )
    with open_bytes(path) as handle:
        start = handle.read(65536)
    if not start.strip(b"\xef\xbb\xbf \r\n"):
        raise UserError(f"{path}: is empty; check where it comes from")
    for magic, text in _FOREIGN_STARTS.items():
        if start.startswith(magic):
            raise UserError(f"{path}: {text}")
    header = start.split(b"\n", 1)[0]
    if b"\x00" in header:
        raise UserError(f"{path}: has NUL bytes in its header; save it as UTF-8")
    counts.repaired["byte_order_mark"] += start.startswith(b"\xef\xbb\xbf")
    counts.repaired["crlf_line_ends"] += header.endswith(b"\r")


def _count_blank_line(path: Path, counts: ImportedFile) -> None:
    """Count a blank line, and refuse a file of little else.

    Raises:
        UserError: If there are more than ``MOST_BLANK_LINES``.
    """
    counts.repaired["blank_line"] += 1
    if counts.repaired["blank_line"] > MOST_BLANK_LINES:
        raise UserError(
            f"{path}: has more than {MOST_BLANK_LINES:,} blank lines; remove them"
        )


def _locate_bad_byte(path: Path) -> str:
    """Describe where the first byte that is not UTF-8 stands, by reading again."""
    names: list[str] = []
    # Undecodable bytes become surrogates, so that the cells that hold one can be found.
    with _open_csv(path, "surrogateescape") as handle:
        rows = csv.reader(handle)
        for number, row in enumerate(row for row in rows if row):
            names = names or row
            for place, cell in enumerate(row):
                if LONE_SURROGATE.search(cell):
                    is_named = place < len(names)
                    column = quote_short(names[place])[1:-1] if is_named else place + 1
                    where = f"row {number}" if number else "header"
                    return f"{where} (line {rows.line_num}), column {column}"
    return "at an unknown place"


def _unreadable(path: Path, error: BaseException) -> UserError:
    """Make the error for a file that breaks off or cannot be decompressed."""
    return UserError(
        f"{path}: cannot be read to its end ({one_line(error)}); fetch or write it "
        "again"
    )


def read_csv_rows(path: Path, source: str, counts: ImportedFile) -> Iterator[RawRow]:
    """Stream the rows of a CSV file that has the Kaggle columns.

    Args:
        path: A plain, gzip- or zstd-compressed file.
        source: One of ``pairs.SOURCES``, or ``pairs.SCORED``.
        counts: Receives repairs and ignored columns.

    Raises:
        UserError: If the file is not UTF-8 CSV, lacks a required column, or has a row
            with another number of fields than the header.
    """
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    place = "header (line 1)"
    try:
        _check_start(path, counts)
        with _open_csv(path, "strict") as handle:
            # Not pyarrow's reader: csv is strict about quotes, reads line breaks within
            # cells, and knows the line that it is at.
            lines = _Lines(handle)
            rows = csv.reader(lines, strict=True)
            names = next(rows)
            while not names:
                _count_blank_line(path, counts)
                names = next(rows)
            columns = match_columns(names, source, str(path))
            counts.ignored_columns = sorted(
                name for position, name in enumerate(names) if position not in columns
            )
            number = 0
            place = f"row 1 (line {rows.line_num + 1})"
            for row in rows:
                lines.n_characters = 0
                # ``place`` is already that of the next row when reading it fails.
                here, number = place, number + bool(row)
                place = f"row {number + 1} (line {rows.line_num + 1})"
                if not row:
                    _count_blank_line(path, counts)
                    continue
                if len(row) != len(names):
                    raise UserError(
                        f"{path}, {here}: has {len(row)} fields, the header has "
                        f"{len(names)}; quote cells that hold commas or line breaks"
                    )
                row.append(None)  # ``columns`` points here for an absent column
                yield RawRow(number, here, [row[position] for position in columns])
    except (csv.Error, UnicodeDecodeError) as error:
        raise _explain_csv_fault(path, place, error) from error
    except (EOFError, OSError, zlib.error) as error:
        raise _unreadable(path, error) from error


def _explain_csv_fault(path: Path, place: str, error: Exception) -> UserError:
    """Make the error for CSV that does not parse, or that is not UTF-8.

    Args:
        path: The file.
        place: The row that was being read.
        error: The ``csv.Error`` or ``UnicodeDecodeError``.
    """
    if isinstance(error, csv.Error):
        known = [text for key, text in _CSV_FAULTS.items() if key in str(error)]
        return UserError(f"{path}, {place}: {known[0] if known else one_line(error)}")
    # The decoder reads ahead of the rows, so ``place`` may lie before the bad byte.
    # A second fault of the file leaves the place as near as it was known.
    with suppress(csv.Error, EOFError, OSError, zlib.error):
        place = _locate_bad_byte(path)
    return UserError(f"{path}, {place}: is not UTF-8; save the file as UTF-8")


def _parse_object(line: bytes) -> dict[str, Any]:
    """Parse one line of JSON lines as a row.

    Raises:
        CellFault: If the line is not UTF-8 or not an object, or has a column twice.
    """

    # json itself would silently keep the last of two equal keys.
    def refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, n_times in Counter(name for name, _ in pairs).items():
            if n_times > 1 and name in ROW_COLUMNS:
                raise CellFault(name, f"occurs {n_times} times; keep one")
        return dict(pairs)

    try:
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=refuse_repeated)
    except UnicodeDecodeError:
        raise CellFault("", "is not UTF-8; save the file as UTF-8") from None
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise CellFault(
            "", "is not a JSON object; write each row as one, with columns as keys"
        )
    return row


def read_json_rows(path: Path, source: str, counts: ImportedFile) -> Iterator[RawRow]:
    """Stream the rows of JSON lines: one object per line, keyed by the Kaggle columns.

    A text is a list of turns, or a string that holds such a list, as in a CSV file.

    Args:
        path: A plain, gzip- or zstd-compressed file.
        source: One of ``pairs.SOURCES``, or ``pairs.SCORED``.
        counts: Receives repairs and ignored columns, the latter at the end.

    Raises:
        UserError: If a line is not a JSON object or lacks a required column.
    """
    number, ignored, used = 0, set(), used_columns(source)
    try:
        _check_start(path, counts)
        with open_bytes(path) as handle:
            lines = iter(lambda: handle.readline(MAX_ROW_BYTES + 1), b"")
            for line_number, line in enumerate(lines, 1):
                if not line.strip():
                    _count_blank_line(path, counts)
                    continue
                number += 1
                where = f"row {number} (line {line_number})"
                if len(line) > MAX_ROW_BYTES:
                    raise UserError(
                        f"{path}, {where}: is larger than {MAX_ROW_BYTES >> 20} MB; "
                        "write one object per line, with shorter texts"
                    )
                try:
                    row = _parse_object(line)
                except CellFault as fault:
                    raise fault.located(str(path), where) from fault
                # Each line is an object of its own and may lack a key.
                match_columns(list(row), source, str(path), where)
                ignored |= row.keys() - set(used)
                values = [
                    row[n] if n in used and n in row else None for n in ROW_COLUMNS
                ]
                yield RawRow(number, where, values)
    except (EOFError, OSError, zlib.error) as error:
        raise _unreadable(path, error) from error
    # JSON allows lone surrogates in a key; the report, which is UTF-8, does not.
    counts.ignored_columns = sorted(
        LONE_SURROGATE.sub("\ufffd", name) for name in ignored
    )


READERS = {
    ".csv": read_csv_rows,
    ".csv.gz": read_csv_rows,
    ".csv.zst": read_csv_rows,
    ".parquet": read_parquet_rows,
    ".jsonl": read_json_rows,
    ".jsonl.gz": read_json_rows,
    ".jsonl.zst": read_json_rows,
}


def read_file_rows(path: Path, source: str, counts: ImportedFile) -> Iterator[RawRow]:
    """Stream the rows of a local file with the reader for its suffix.

    Args:
        path: A file with one of the suffixes of ``READERS``, in any case.
        source: One of ``pairs.SOURCES``, or ``pairs.SCORED``.
        counts: Receives repairs and ignored columns.

    Raises:
        UserError: If the file is absent, has another suffix, or cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: is not a file; check the paths under data")
    for suffix, reader in READERS.items():
        if path.name.lower().endswith(suffix):
            return reader(path, source, counts)
    known = _UNSUPPORTED.get(path.suffix.lower())
    kinds = f"cannot read this kind of file; give {', '.join(READERS)} instead"
    raise UserError(f"{path}: {known or kinds}")
