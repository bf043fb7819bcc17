"""Read and write parquet tables, and define their schemas."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefdistill.errors import UserError
from prefdistill.storage.whole_files import (
    atomic_path,
    check_unpacked,
    not_finite,
    reading,
)

TARGET_COLUMNS = ("winner_model_a", "winner_model_b", "winner_tie")

TEXT_FIELDS = [
    pa.field("prompt", pa.list_(pa.string())),
    pa.field("response_a", pa.list_(pa.string())),
    pa.field("response_b", pa.list_(pa.string())),
]
TARGET_FIELDS = [pa.field(name, pa.int8()) for name in TARGET_COLUMNS]
PAIRS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("source", pa.string()),
        *TEXT_FIELDS,
        *TARGET_FIELDS,
        pa.field("model_a", pa.string()),
        pa.field("model_b", pa.string()),
        pa.field("file", pa.string()),
        pa.field("row", pa.int64()),
    ]
)
CLEAN_SCHEMA = PAIRS_SCHEMA.append(pa.field("group", pa.string()))
FOLD_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("split", pa.string()),
        pa.field("group", pa.string()),
        *TEXT_FIELDS,
        *TARGET_FIELDS,
    ]
)

# Rows read to estimate the bytes per row, before the whole file is unpacked.
N_PROBED_ROWS = 16


def write_table(path: str | Path, table: pa.Table, schema: pa.Schema) -> None:
    """Write a parquet file whose columns are exactly those of ``schema``.

    Args:
        path: The file.
        table: Has at least the schema's columns; they are cast to the schema's types.
        schema: Names, order and types of the columns to write.

    Raises:
        UserError: If a number is NaN or infinite; nothing is written then.
    """
    table = table.select(schema.names).cast(schema)
    for field in schema:
        if pa.types.is_floating(field.type):
            finite = pc.is_finite(table.column(field.name))
            if pc.any(pc.invert(finite)).as_py():
                raise not_finite(path, f"a value of column {field.name}")
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def open_table(path: str | Path) -> pq.ParquetFile:
    """Open a parquet file for reading in parts.

    Raises:
        UserError: If the file is not whole, or would fill the memory.
    """
    with reading(path, "a whole parquet file"):
        file = pq.ParquetFile(path)
        rows = file.metadata.num_rows
        first = next(file.iter_batches(N_PROBED_ROWS), None)
        if first is not None:
            each = first.nbytes / max(first.num_rows, 1)
            check_unpacked(int(rows * max(each, 1)), Path(path).stat().st_size)
        return file


def read_table(
    path: str | Path,
    schema: pa.Schema | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Read a parquet file, and check its columns if a schema is given.

    Args:
        path: The file.
        schema: Names, order and types that its columns must have.
        columns: Without a schema, the columns to read.

    Raises:
        UserError: If the file is not parquet, its columns differ, or an id is null.
    """
    with open_table(path) as file, reading(path, "a whole parquet file"):
        names = schema.names if schema else columns
        found = file.schema_arrow.names
        if schema and found != names:
            raise ValueError(f"columns are {found}, expected {names}")
        missing = [name for name in names or () if name not in found]
        if missing:
            raise ValueError(f"column {missing[0]} is missing")
        for field in schema or ():
            kind = file.schema_arrow.field(field.name).type
            if kind != field.type:
                raise ValueError(
                    f"column {field.name} is {kind}, expected {field.type}"
                )
        table = file.read(names)
        if "id" in table.column_names and table.column("id").null_count:
            raise ValueError("an id is null")
        return table.cast(schema) if schema else table


def table_targets(table: pa.Table) -> np.ndarray:
    """Return the target distributions of labelled rows.

    Returns:
        ``(n, 3)`` float32, classes (A, B, tie); one-hot rows.

    Raises:
        UserError: If a row is unlabelled or does not sum to one.
    """
    targets = np.stack(
        [
            table.column(name).to_numpy(zero_copy_only=False).astype(np.float32)
            for name in TARGET_COLUMNS
        ],
        axis=1,
    )
    if len(targets) and not (targets.sum(axis=1) == 1).all():
        row = int(np.flatnonzero(targets.sum(axis=1) != 1)[0])
        raise UserError(
            f"row id {table.column('id')[row].as_py()}: the target columns "
            f"{', '.join(TARGET_COLUMNS)} are {targets[row].tolist()}, not one-hot"
        )
    return targets
