"""Read the rows of a parquet file, whose repeated texts could fill the memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefdistill.data.pairs import ROW_COLUMNS, ImportedFile, RawRow, match_columns
from prefdistill.data.unpacking import most_unpacked, too_large
from prefdistill.errors import UserError, one_line

BATCH_ROWS = 1024


def _check_chunks(
    path: Path, metadata: pq.FileMetaData, used: Sequence[str], most: int
) -> list[str]:
    """Check the sizes of a parquet file's columns, and list those that hold bytes.

    Args:
        path: The file, for the message.
        metadata: Its metadata.
        used: The names of the columns that will be read.
        most: How many bytes they may unpack to, without copies of repeated texts.

    Returns:
        Their paths in the file's schema.

    Raises:
        UserError: If the columns are too large.
    """
    n_bytes, leaves = 0, []
    for place in range(metadata.num_columns):
        column = metadata.schema.column(place)
        if column.path.partition(".")[0] not in used:
            continue
        if column.physical_type == "BYTE_ARRAY":
            leaves.append(column.path)
        for group in range(metadata.num_row_groups):
            chunk = metadata.row_group(group).column(place)
            # A list of nulls takes no bytes in the file, but 8 for each in memory.
            width = max(column.length, 8)
            n_bytes += max(chunk.total_uncompressed_size, width * chunk.num_values)
    if n_bytes > most:
        raise too_large(path, most)
    return leaves


def _unpacked_bytes(array: pa.Array) -> int:
    """Compute the size of an array once each repeated value is a copy."""
    if isinstance(array, pa.DictionaryArray):
        if not pa.types.is_string(array.type.value_type) and not pa.types.is_binary(
            array.type.value_type
        ):
            return array.nbytes
        lengths = pc.binary_length(array.dictionary).cast(pa.int64())
        return pc.sum(lengths.take(array.indices)).as_py() or 0
    if isinstance(array, pa.StructArray):
        return sum(map(_unpacked_bytes, array.flatten()))
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return _unpacked_bytes(array.flatten())
    return array.nbytes


def read_parquet_rows(
    path: Path, source: str, counts: ImportedFile
) -> Iterator[RawRow]:
    """Stream the rows of a parquet file that has the Kaggle columns.

    Args:
        path: A parquet file; texts are lists of strings, or JSON as in a CSV file.
        source: One of ``pairs.SOURCES``, or ``pairs.SCORED``.
        counts: Receives the ignored columns.

    Raises:
        UserError: If the file cannot be read as parquet or lacks a required column.
    """
    number, n_bytes, most = 0, 0, most_unpacked(path)
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = match_columns(names, source, str(path))
            used = [names[place] for place in columns if place < len(names)]
            counts.ignored_columns = sorted(set(names) - set(used))
            leaves = _check_chunks(path, file.metadata, used, most)
        # A text that a file repeats lies there once. As a dictionary it also lies in
        # memory once, so the size of a batch is known before its texts are copied.
        with pq.ParquetFile(path, read_dictionary=leaves) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=used):
                n_bytes += sum(map(_unpacked_bytes, batch.columns))
                if n_bytes > most:
                    raise too_large(path, most)
                values = [
                    batch.column(name).to_pylist()
                    if name in used
                    else [None] * len(batch)
                    for name in ROW_COLUMNS
                ]
                for row in zip(*values, strict=True):
                    number += 1
                    yield RawRow(number, f"row {number}", list(row))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, after row {number}: a text is not UTF-8; write the file again"
        ) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable parquet file ({one_line(error)}); write it "
            "again, or give it the name of its kind"
        ) from error
