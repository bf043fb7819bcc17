import pyarrow.parquet as pq
import pytest
from pair_samples import import_files, kaggle_row, write_csv

from prefdistill.data.pairs import (
    ROW_COLUMNS,
    SCORED,
    SOURCES,
    list_entries,
    match_columns,
    open_parquet_writer,
    required_columns,
    used_columns,
)
from prefdistill.errors import UserError
from prefdistill.storage.tables import PAIRS_SCHEMA


def test_inputs_are_listed_by_source():
    data = {
        "test": "test.csv",
        "ultra": None,
        "extra": ["x.csv", {"hub": "a/b"}],
        "train": ["t.csv"],
    }
    assert list_entries(data) == [
        ("train", "t.csv"),
        ("extra", "x.csv"),
        ("extra", {"hub": "a/b"}),
        ("test", "test.csv"),
    ]
    with pytest.raises(UserError, match=r"data\.train: is empty"):
        list_entries(data | {"train": []})


@pytest.mark.parametrize("source", [*SOURCES, SCORED])
def test_required_columns_are_used_and_found_anywhere(source):
    required, used = required_columns(source), used_columns(source)
    assert set(required) <= set(used) <= set(ROW_COLUMNS)
    names = ["other", *reversed(required)]
    places = match_columns(names, source, "f.csv")
    found = {
        name: names[place]
        for name, place in zip(ROW_COLUMNS, places, strict=True)
        if place < len(names)
    }
    assert found == {name: name for name in required}
    for name in required:
        with pytest.raises(UserError, match=f"f.csv, header, column {name}: is mis"):
            match_columns([n for n in names if n != name], source, "f.csv")


def test_row_is_typed_and_named(tmp_path):
    path = write_csv(
        tmp_path / "t.csv", [kaggle_row(7), kaggle_row(-3, label=(0, 0, 1))]
    )
    rows, report = import_files(tmp_path, [path])
    assert rows[0] == {
        "id": "train:7", "source": "train", "prompt": ["p"], "response_a": ["a"],
        "response_b": ["b"], "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0,
        "model_a": "m", "model_b": "n", "file": path, "row": 1,
    }  # fmt: skip
    assert rows[1]["id"] == "train:-3"
    assert report["n_rows"] == {"train": 2}
    assert report["repaired"] == {}


def test_sources_number_their_rows_independently(tmp_path):
    paths = {
        s: write_csv(tmp_path / f"{s}.csv", [kaggle_row(1), kaggle_row(2)])
        for s in ("train", "extra", "ultra")
    }
    test = write_csv(
        tmp_path / "test.csv",
        [[1, '["p"]', '["a"]', '["b"]']],
        "id,prompt,response_a,response_b",
    )
    rows, report = import_files(
        tmp_path, [paths["train"]], extra=[paths["extra"]], ultra=[paths["ultra"]],
        test=test, unlabelled=[test],
    )  # fmt: skip
    counts = {"train": 2, "extra": 2, "ultra": 2, "test": 1, "unlabelled": 1}
    assert report["n_rows"] == counts
    assert len({row["id"] for row in rows}) == 8
    assert [row["winner_tie"] for row in rows[-2:]] == [None, None]


def test_labels_of_a_test_file_are_ignored(tmp_path):
    path = write_csv(tmp_path / "t.csv", [kaggle_row(1)])
    rows, report = import_files(tmp_path, [path], test=path)
    assert rows[1]["winner_model_a"] is None
    assert "winner_model_a" in report["files"][1]["ignored_columns"]


def test_targets_that_are_not_one_hot_are_left_to_cleaning(tmp_path):
    raw = [kaggle_row(1, label=(0, 0, 0)), kaggle_row(2, label=(1, 1, 0))]
    rows, _ = import_files(tmp_path, [write_csv(tmp_path / "t.csv", raw)])
    assert [r["winner_model_a"] + r["winner_model_b"] for r in rows] == [0, 2]


def test_batches_are_written_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("prefdistill.data.pairs.BATCH_ROWS", 3)
    raw = [kaggle_row(n) for n in range(10)]
    rows, _ = import_files(tmp_path, [write_csv(tmp_path / "t.csv", raw)])
    assert [row["id"] for row in rows] == [f"train:{n}" for n in range(10)]


def test_id_twice_in_two_files_of_a_source(tmp_path):
    paths = [write_csv(tmp_path / f"{n}.csv", [kaggle_row(5)]) for n in "ab"]
    with pytest.raises(
        UserError, match=r"b\.csv, row 1 .*column id: 5 occurs a second"
    ):
        import_files(tmp_path, paths)


def test_long_texts_end_a_batch_early(tmp_path, monkeypatch):
    monkeypatch.setattr("prefdistill.data.pairs.BATCH_CHARACTERS", 25)
    raw = [kaggle_row(n, ["p" * 8]) for n in range(7)]
    import_files(tmp_path, [write_csv(tmp_path / "t.csv", raw)])
    with pq.ParquetFile(tmp_path / "pairs.parquet") as file:
        sizes = [file.metadata.row_group(n).num_rows for n in range(3)]
    assert sizes == [3, 3, 1]


def test_an_interrupted_writer_leaves_no_file(tmp_path):
    path = tmp_path / "pairs.parquet"
    with pytest.raises(RuntimeError), open_parquet_writer(path, PAIRS_SCHEMA):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
