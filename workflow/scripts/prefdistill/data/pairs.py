"""Parse preference pairs of any origin and write them as one typed table.

Every reader yields the same nine values per row (``ROW_COLUMNS``). A value that cannot
be read stops the import with one line that names file, row and column: a skipped row
would shift the class prior, and a guessed label could be wrong. Repairs that lose
nothing are made and counted.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefdistill.data.cells import (
    CellFault,
    parse_id,
    parse_label,
    parse_name,
    parse_turns,
    quote_short,
)
from prefdistill.errors import UserError, printable
from prefdistill.storage.tables import PAIRS_SCHEMA, TARGET_COLUMNS
from prefdistill.storage.whole_files import atomic_path

SOURCES = ("train", "extra", "ultra", "test", "unlabelled")
# Files of these sources need no labels; labels in them are not read.
UNLABELLED = ("test", "unlabelled")
# The name, in place of a source, of a file that a finished judge scores. Only the texts
# are required there; an id and labels are read where they are present.
SCORED = "scored"
TEXT_COLUMNS = ("prompt", "response_a", "response_b")
MODEL_COLUMNS = ("model_a", "model_b")
ROW_COLUMNS = ("id", *TEXT_COLUMNS, *TARGET_COLUMNS, *MODEL_COLUMNS)

# A batch ends at whichever comes first. The limit on characters bounds the memory where
# texts are long.
BATCH_ROWS, BATCH_CHARACTERS = 4096, 32 << 20


@dataclass
class ImportedFile:
    """Collect the counts of one input file for ``import.json``.

    Attributes:
        file: The path or Hub name, as configured.
        source: One of ``SOURCES``, or ``SCORED``.
        n_rows: Number of data rows read.
        ignored_columns: Columns of the file that are not used, sorted.
        repaired: Number of repairs, by reason.
    """

    file: str
    source: str
    n_rows: int = 0
    ignored_columns: list[str] = field(default_factory=list)
    repaired: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class RawRow:
    """Hold the unparsed values of one row.

    Attributes:
        number: Number of the data row; the first is 1.
        where: The place for messages, such as ``"row 3 (line 7)"``.
        values: The nine values of ``ROW_COLUMNS`` as the file has them; None where the
            file lacks the column.
    """

    number: int
    where: str
    values: list[Any]


def describe_import(files: Sequence[ImportedFile]) -> dict[str, Any]:
    """Count rows and repairs over all files, for ``import.json``."""
    n_rows: Counter[str] = Counter()
    repaired: Counter[str] = Counter()
    for counts in files:
        n_rows[counts.source] += counts.n_rows
        repaired += counts.repaired
    described = [{**vars(file), "repaired": dict(file.repaired)} for file in files]
    return {"n_rows": n_rows, "repaired": repaired, "files": described}


def list_entries(data: dict[str, Any]) -> list[tuple[str, Any]]:
    """List all configured inputs as (source, path or Hub entry), by source.

    Raises:
        UserError: If no training input is named.
    """
    listed = {source: data.get(source) or [] for source in SOURCES}
    if isinstance(data.get("test"), str | dict):
        listed["test"] = [data["test"]]
    if not listed["train"]:
        raise UserError("data.train: is empty; name at least one file or data set")
    return [(source, entry) for source in SOURCES for entry in listed[source]]


def parse_row(
    values: list[Any], *, labelled: bool, integer_id: bool, repaired: Counter[str]
) -> tuple[Any, ...]:
    """Parse the nine values of a row.

    Args:
        values: Raw values in the order of ``ROW_COLUMNS``.
        labelled: Parse the labels; otherwise they become None.
        integer_id: See ``parse_id``.
        repaired: Counts of repairs; updated in place.

    Returns:
        Typed values in the same order: id, three lists of turns, three labels, and two
        model names or None.

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
    models = map(parse_name, values[7:])
    return (parse_id(values[0], integer=integer_id), *texts, *labels, *models)


def used_columns(source: str) -> tuple[str, ...]:
    """List those of ``ROW_COLUMNS`` that are read from a file of a source."""
    if source == SCORED:
        return ("id", *TEXT_COLUMNS, *TARGET_COLUMNS)
    return ("id", *TEXT_COLUMNS) if source in UNLABELLED else ROW_COLUMNS


def required_columns(source: str) -> tuple[str, ...]:
    """List those of ``ROW_COLUMNS`` that a file of a source must have."""
    if source == SCORED:
        return TEXT_COLUMNS
    labels = () if source in UNLABELLED else TARGET_COLUMNS
    return ("id", *TEXT_COLUMNS, *labels)


def match_columns(
    names: list[str], source: str, file: str, where: str = "header"
) -> list[int]:
    """Find the position of each of ``ROW_COLUMNS`` among the columns of a file.

    Args:
        names: The columns of the file.
        source: One of ``SOURCES``, or ``SCORED``.
        file: The file's name for messages.
        where: The place for messages: the header, or a row of JSON lines.

    Returns:
        Nine positions; ``len(names)`` for a column that is absent or not used.

    Raises:
        UserError: If a required column is missing, or a used one occurs twice.
    """
    required = required_columns(source)
    used = used_columns(source)
    how = "comma-separated " if where == "header" else ""
    for name in used:
        if names.count(name) > 1:
            raise UserError(
                f"{file}, {where}, column {name}: occurs {names.count(name)} "
                "times; keep one"
            )
        if name in required and name not in names:
            found = ", ".join(map(quote_short, names[:12]))
            raise UserError(
                f"{file}, {where}, column {name}: is missing; found {found}; "
                f"a {source} file needs {how}{','.join(required)}"
            )
    return [
        names.index(name) if name in used and name in names else len(names)
        for name in ROW_COLUMNS
    ]


@contextmanager
def open_parquet_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Open a writer of batches for a parquet file that appears only once complete."""
    # Nearly every text and id is unique, so a dictionary of them would only cost space.
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
    """Parse rows of any origin, check that ids are unique, and write batches.

    Args:
        writer: A writer of ``PAIRS_SCHEMA``.
    """

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._seen: dict[str, set[str]] = {source: set() for source in SOURCES}

    def add(
        self, rows: Iterable[RawRow], counts: ImportedFile, *, integer_id: bool = True
    ) -> None:
        """Write all rows of one file and count them.

        Args:
            rows: The rows, from a reader.
            counts: Names the file and its source; its counts are updated in place.
            integer_id: See ``parse_id``.

        Raises:
            UserError: If a value cannot be read, an id occurs twice in its source, or
                the file has no rows.
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
                        f"{printable(values[0])} occurs a second time among the "
                        f"{source} rows; ids must be unique",
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
        columns = dict(
            zip((*ROW_COLUMNS, "row"), zip(*batch, strict=True), strict=True)
        )
        # Files of different sources number their rows independently.
        columns["id"] = [f"{counts.source}:{name}" for name in columns["id"]]
        columns["source"] = [counts.source] * len(batch)
        columns["file"] = [counts.file] * len(batch)
        self._writer.write_batch(
            pa.record_batch(
                [pa.array(columns[f.name], type=f.type) for f in PAIRS_SCHEMA],
                schema=PAIRS_SCHEMA,
            )
        )
