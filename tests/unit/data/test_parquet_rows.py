"""Parquet files whose texts repeat: refused where they would fill the memory."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefdistill.data.pairs import SCORED, ImportedFile
from prefdistill.data.parquet_rows import read_parquet_rows
from prefdistill.errors import UserError


def read(path):
    return list(read_parquet_rows(path, SCORED, ImportedFile(str(path), SCORED)))


def repeated(text, n):
    """A column of n equal texts, which a file holds once."""
    return pa.DictionaryArray.from_arrays(
        pa.array([0] * n, pa.int32()), pa.array([text])
    )


def one_each(column, size=1):
    """Put ``size`` values into each list."""
    offsets = pa.array(range(0, len(column) + 1, size), pa.int32())
    return pa.ListArray.from_arrays(offsets, column)


LONG = "a" * 100_000
PARQUET_BOMBS = {
    "texts": repeated(LONG, 4000),
    "lists": one_each(repeated(LONG, 4000)),
    "one list": one_each(repeated(LONG, 4000), 4000),
    "nulls": pa.array([[None] * 10_000_000], pa.list_(pa.string())),
    "fixed": repeated(LONG.encode(), 4000).cast(
        pa.dictionary(pa.int32(), pa.binary(len(LONG)))
    ),
    "structs": pa.StructArray.from_arrays([repeated(LONG, 4000)], ["x"]),
    "large": repeated(LONG, 4000).cast(pa.dictionary(pa.int32(), pa.large_string())),
    "plain": repeated(LONG, 4000).cast(pa.string()),
}


@pytest.mark.parametrize("store_schema", [True, False])
@pytest.mark.parametrize("kind", PARQUET_BOMBS)
def test_a_parquet_file_that_would_fill_the_memory_is_refused(
    kind, store_schema, tmp_path
):
    column = PARQUET_BOMBS[kind]
    short = [["a"]] * len(column)
    table = pa.table({"prompt": column, "response_a": short, "response_b": short})
    path = tmp_path / "t.parquet"
    pq.write_table(table, path, compression="zstd", store_schema=store_schema)
    assert path.stat().st_size < 200_000
    before = pa.total_allocated_bytes()
    with pytest.raises(UserError, match=r"t\.parquet: its [\d,]+ bytes unpack to more"):
        read(path)
    assert pa.total_allocated_bytes() - before < 64 << 20


def test_texts_that_repeat_are_read_from_parquet(tmp_path):
    rows = [["p"], ["q"], ["p"], ["é" * 999]] * 700
    for typed in (pa.string(), pa.large_string()):
        columns = dict.fromkeys(
            ("prompt", "response_a", "response_b"), pa.array(rows, pa.list_(typed))
        )
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        found = read(tmp_path / "t.parquet")
        assert [row.values[1] for row in found] == rows
