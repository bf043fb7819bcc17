"""Preference pairs from Kaggle CSV, parquet and Hub data sets, as one typed table.

Whatever the origin, a row becomes the same nine values (``FIELDS``), is parsed by the
same functions, and a value that cannot be read stops the import with one line naming
file, row and column: a silently skipped row would shift the class prior, and a silently
repaired label would be a wrong one. Repairs that lose nothing are made and counted.
"""

import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefdistill.errors import UserError
from prefdistill.storage.tables import PAIRS_SCHEMA, TARGET_COLUMNS
from prefdistill.storage.whole_files import atomic_path

SOURCES = ("train", "extra", "ultra", "test", "unlabelled")
# Their files need no labels, and labels in them are not read.
UNLABELLED = ("test", "unlabelled")
# A file for a finished judge: an id and labels may be there or not.
SCORED = "scored"
TEXT_COLUMNS = ("prompt", "response_a", "response_b")
MODEL_COLUMNS = ("model_a", "model_b")
FIELDS = ("id", *TEXT_COLUMNS, *TARGET_COLUMNS, *MODEL_COLUMNS)

BATCH_ROWS, BATCH_CHARACTERS = 4096, 32 << 20

_KAGGLE_ID = re.compile(r"-?(0|[1-9][0-9]*)")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_decode_strict = json.JSONDecoder().decode
_decode_lenient = json.JSONDecoder(strict=False).decode


class CellFault(Exception):
    """A value that cannot be read; the reader adds file and row.

    Args:
        column: Name of the column; empty where it is the row as a whole.
        text: What is wrong and what to do.
    """

    def __init__(self, column: str, text: str) -> None:
        super().__init__(text)
        self.column = column

    def located(self, file: str, where: str) -> UserError:
        """The error that names the place as well."""
        column = self.column and f", column {self.column}"
        return UserError(f"{file}, {where}{column}: {self}")


@dataclass
class ImportedFile:
    """Counts of one input file for ``import.json``.

    Attributes:
        file: The path or Hub name, as configured.
        source: train, extra, ultra or test.
        n_rows: Data rows read.
        ignored_columns: Columns that are in the file and not used, sorted.
        repaired: Number of repairs by reason.
    """

    file: str
    source: str
    n_rows: int = 0
    ignored_columns: list[str] = field(default_factory=list)
    repaired: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class RawRow:
    """Values of one row in the order of ``FIELDS``, None where a column is absent.

    Attributes:
        number: Data row number; the first is 1.
        where: The place for messages, such as ``"row 3 (line 7)"``.
        values: Nine values as the file has them.
    """

    number: int
    where: str
    values: list[Any]


def list_entries(data: dict[str, Any]) -> list[tuple[str, Any]]:
    """All configured inputs as (source, path or Hub entry), in the order of sources.

    Raises:
        UserError: If there is no training input.
    """
    listed = {source: data.get(source) or [] for source in SOURCES}
    if isinstance(data.get("test"), str | dict):
        listed["test"] = [data["test"]]
    if not listed["train"]:
        raise UserError("data.train: is empty; name at least one file or data set")
    return [(source, entry) for source in SOURCES for entry in listed[source]]


def shorten(value: Any) -> str:
    """A value for a message: one short line of ASCII in quotes."""
    text = value if isinstance(value, str) else reprlib.repr(value)
    return ascii(text if len(text) <= 40 else text[:37] + "...")


def parse_id(value: Any, *, integer: bool = True) -> str:
    """The id as text; of a Kaggle file a plain 64-bit integer, kept as written.

    Raises:
        CellFault: If it is missing or no such integer.
    """
    text = "" if value is None else str(value)
    if not integer and text:
        return text
    if not _KAGGLE_ID.fullmatch(text):
        raise CellFault("id", f"{shorten(value)} is not an integer")
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise CellFault("id", f"{shorten(value)} does not fit into 64 bits")
    return text


def parse_label(value: Any, column: str) -> int:
    """A 0 or 1, from text or from a typed column.

    Raises:
        CellFault: If it is anything else.
    """
    if value == "1" or value == "0":
        return int(value)
    if isinstance(value, int | float) and value in (0, 1):
        return int(value)
    raise CellFault(column, f"{shorten(value)} is not a label; it must be 0 or 1")


def _parse_json(text: str, column: str, repaired: Counter[str]) -> Any:
    try:
        return _decode_strict(text)
    except ValueError:
        pass
    except RecursionError:
        raise CellFault(column, "the JSON is nested too deeply") from None
    try:
        value = _decode_lenient(text)
    except (ValueError, RecursionError):
        raise CellFault(
            column,
            f"{shorten(text)} is not JSON; it must be a JSON list of turns, such as "
            '["Hello"]',
        ) from None
    repaired["raw_control_character"] += 1
    return value


def _may_hold_surrogates(cell: str) -> bool:
    escaped = "\\ud" in cell or "\\uD" in cell
    return escaped or (not cell.isascii() and bool(LONE_SURROGATE.search(cell)))


def parse_turns(value: Any, column: str, repaired: Counter[str]) -> list[str]:
    """The turns of one text cell: a JSON list of strings, or such a list itself.

    A null turn becomes an empty one and a lone surrogate (half of a character pair,
    which UTF-8 cannot hold) becomes U+FFFD; both are counted.

    Args:
        value: The cell: JSON text or, from a typed column, a list.
        column: Name for messages.
        repaired: Counts of repairs, added to.

    Raises:
        CellFault: If it is not a list of strings and nulls.
    """
    turns = _parse_json(value, column, repaired) if isinstance(value, str) else value
    if not isinstance(turns, list):
        raise CellFault(
            column, f'{shorten(value)} is not a list of turns, such as ["Hello"]'
        )
    may_be_broken = not isinstance(value, str) or _may_hold_surrogates(value)
    for place, turn in enumerate(turns):
        if turn is None:
            turns[place] = ""
            repaired["null_turn"] += 1
        elif not isinstance(turn, str):
            raise CellFault(
                column, f"turn {place + 1} is {shorten(turn)}, not a string or null"
            )
        elif may_be_broken:
            turns[place], n_broken = LONE_SURROGATE.subn("\ufffd", turn)
            repaired["lone_surrogate"] += n_broken
    return turns


def _parse_name(value: Any) -> str | None:
    if value is None:
        return None
    text = str(value) if isinstance(value, str | int | float) else reprlib.repr(value)
    return LONE_SURROGATE.sub("\ufffd", text)


def parse_row(
    values: list[Any], *, labelled: bool, integer_id: bool, repaired: Counter[str]
) -> tuple[Any, ...]:
    """Typed values of a row, in the order of ``FIELDS``.

    Raises:
        CellFault: If a value cannot be read.
    """
    texts = (
        parse_turns(value, column, repaired)
        for column, value in zip(TEXT_COLUMNS, values[1:4], strict=True)
    )
    labels: Iterable[int | None] = (None, None, None)
    if labelled:
        labels = map(parse_label, values[4:7], TARGET_COLUMNS)
    models = map(_parse_name, values[7:])
    return (parse_id(values[0], integer=integer_id), *texts, *labels, *models)


def used_columns(source: str) -> tuple[str, ...]:
    """Those of ``FIELDS`` that are read from a file of a source."""
    if source == SCORED:
        return FIELDS[:7]
    return FIELDS[:4] if source in UNLABELLED else FIELDS


def required_columns(source: str) -> tuple[str, ...]:
    """Those of ``FIELDS`` that a file of a source must have."""
    if source == SCORED:
        return TEXT_COLUMNS
    return FIELDS[:4] if source in UNLABELLED else FIELDS[:7]


def match_columns(
    names: list[str], source: str, file: str, where: str = "header"
) -> list[int]:
    """Where each of ``FIELDS`` stands among a file's columns; ``len(names)``: nowhere.

    Raises:
        UserError: If a required column is missing, or a used one stands there twice.
    """
    required = required_columns(source)
    used = used_columns(source)
    how = "comma-separated " if where == "header" else ""
    for name in used:
        if names.count(name) > 1:
            raise UserError(
                f"{file}, {where}, column {name}: stands there {names.count(name)} "
                "times; keep one"
            )
        if name in required and name not in names:
            found = ", ".join(map(shorten, names[:12]))
            raise UserError(
                f"{file}, {where}, column {name}: is missing; found {found}; "
                f"a {source} file needs {how}{','.join(required)}"
            )
    return [
        names.index(name) if name in used and name in names else len(names)
        for name in FIELDS
    ]


@contextmanager
def open_parquet(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A streaming, atomic parquet writer; text is compressed, not dictionary-coded."""
    plain = [f.name for f in schema if pa.types.is_list(f.type) or f.name == "id"]
    dictionary = [name for name in schema.names if name not in plain]
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            use_dictionary=dictionary,
            write_statistics=False,
        ) as writer,
    ):
        yield writer


class PairsWriter:
    """Parses rows of any origin, checks that ids are unique, and writes batches."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._seen: dict[str, set[str]] = {source: set() for source in SOURCES}

    def add(
        self, rows: Iterable[RawRow], counts: ImportedFile, *, integer_id: bool = True
    ) -> None:
        """Write all rows of one file and count them.

        Raises:
            UserError: If a value cannot be read, an id occurs twice in its source, or
                there are no rows.
        """
        source, seen = counts.source, self._seen[counts.source]
        batch: list[tuple[Any, ...]] = []
        n_characters = 0
        for row in rows:
            try:
                values = parse_row(
                    row.values,
                    labelled=source not in UNLABELLED,
                    integer_id=integer_id,
                    repaired=counts.repaired,
                )
                if values[0] in seen:
                    raise CellFault(
                        "id",
                        f"{values[0]} occurs a second time among the {source} rows; "
                        "ids must be unique",
                    )
            except CellFault as fault:
                raise fault.located(counts.file, row.where) from fault
            seen.add(values[0])
            counts.n_rows += 1
            batch.append((*values, row.number))
            n_characters += sum(map(len, values[1])) + sum(
                len(turn) for text in values[2:4] for turn in text
            )
            if len(batch) >= BATCH_ROWS or n_characters >= BATCH_CHARACTERS:
                self._write(batch, counts)
                batch, n_characters = [], 0
        if not counts.n_rows:
            raise UserError(
                f"{counts.file}: has no data rows; check where it comes from"
            )
        if batch:
            self._write(batch, counts)

    def _write(self, batch: list[tuple[Any, ...]], counts: ImportedFile) -> None:
        columns = dict(zip((*FIELDS, "row"), zip(*batch, strict=True), strict=True))
        columns["id"] = [f"{counts.source}:{name}" for name in columns["id"]]
        columns["source"] = [counts.source] * len(batch)
        columns["file"] = [counts.file] * len(batch)
        self._writer.write_batch(
            pa.record_batch(
                [pa.array(columns[f.name], type=f.type) for f in PAIRS_SCHEMA],
                schema=PAIRS_SCHEMA,
            )
        )
