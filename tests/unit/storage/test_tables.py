"""Parquet tables: their columns, and what is refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefdistill.errors import DamagedFile, UserError
from prefdistill.storage.tables import (
    TARGET_COLUMNS,
    open_table,
    read_table,
    table_targets,
    write_table,
)

SCHEMA = pa.schema([("id", pa.string()), ("score", pa.float32()), ("n", pa.int64())])


def table(**changes):
    columns = {"n": [1, None, 3], "id": ["a", "b", "c"], "score": [0.5, None, 1.0]}
    return pa.table(columns | {"more": [0, 0, 0]} | changes)


@pytest.fixture
def path(tmp_path):
    """A file of three rows."""
    write_table(tmp_path / "x.parquet", table(), SCHEMA)
    return tmp_path / "x.parquet"


def test_a_table_has_the_columns_of_its_schema_alone_in_its_order(path):
    found = read_table(path, SCHEMA)
    assert found.schema.equals(SCHEMA)
    assert found.to_pydict() == {
        "id": ["a", "b", "c"],
        "score": [0.5, None, 1.0],
        "n": [1, None, 3],
    }
    assert read_table(path).column_names == SCHEMA.names
    assert read_table(path, columns=["n"]).to_pydict() == {"n": [1, None, 3]}


def test_an_empty_table_is_a_table(path):
    write_table(path, table().slice(0, 0), SCHEMA)
    assert read_table(path, SCHEMA).num_rows == 0
    unlabelled = pa.table({name: [] for name in TARGET_COLUMNS})
    assert table_targets(unlabelled).shape == (0, 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_leaves_the_former_file(path, value):
    with pytest.raises(UserError, match="not written, as a value of column score is"):
        write_table(path, table(score=[0.0, value, None]), SCHEMA)
    assert read_table(path).num_rows == 3
    assert read_table(path, columns=["score"]).to_pydict()["score"][0] == 0.5


@pytest.mark.parametrize(
    ("schema", "columns", "message"),
    [
        (pa.schema(list(SCHEMA)[:2]), None, r"columns are \['id', 'score', 'n'\], exp"),
        (pa.schema(list(SCHEMA)[::-1]), None, "columns are"),
        (SCHEMA.set(2, pa.field("n", pa.int8())), None, "n is int64, expected int8"),
        (None, ["id", "none"], "column none is missing"),
    ],
)
def test_other_columns_are_refused(path, schema, columns, message):
    with pytest.raises(DamagedFile, match=message):
        read_table(path, schema, columns)


def test_a_row_without_an_id_is_refused(path):
    write_table(path, table(id=["a", None, "c"]), SCHEMA)
    with pytest.raises(DamagedFile, match="an id is null"):
        read_table(path, SCHEMA)
    assert read_table(path, columns=["n"]).num_rows == 3


def test_what_is_no_whole_parquet_file_is_refused(path):
    whole = path.read_bytes()
    for content in (b"", b"id,score\n", whole[:-20], whole[: len(whole) // 2]):
        path.write_bytes(content)
        for read in (open_table, read_table):
            with pytest.raises(DamagedFile, match="not a whole parquet file"):
                read(path)


def test_a_file_that_would_fill_the_memory_is_refused(path, monkeypatch):
    rows = pa.table({"text": ["x" * 1000] * 1000})
    pq.write_table(rows, path, compression="zstd")
    assert read_table(path).equals(rows)
    monkeypatch.setattr("prefdistill.storage.whole_files.MOST_UNPACKED_BYTES", 500_000)
    monkeypatch.setattr("prefdistill.storage.whole_files.MOST_RATIO", 1)
    with pytest.raises(DamagedFile, match=r"would become 1e\+06; is it a zip bomb"):
        open_table(path)


def labelled(rows):
    columns = dict(zip(TARGET_COLUMNS, zip(*rows, strict=True), strict=True))
    return pa.table({"id": [f"train:{n}" for n in range(len(rows))]} | columns)


def test_targets_are_in_the_order_of_the_classes():
    rows = [(0, 1, 0), (1, 0, 0), (0, 0, 1)]
    targets = table_targets(labelled(rows))
    assert targets.dtype == np.float32
    assert targets.tolist() == [list(map(float, row)) for row in rows]


@pytest.mark.parametrize("bad", [(0, 0, 0), (1, 1, 0), (None, None, None)])
def test_the_first_row_without_a_label_is_named(bad):
    with pytest.raises(UserError, match="row id train:1: the target columns winner"):
        table_targets(labelled([(0, 1, 0), bad, bad]))
