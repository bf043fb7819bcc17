import gzip
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_samples import HEADER, import_files, kaggle_row, write_csv

from prefdistill.data.pairs import SCORED, ImportedFile
from prefdistill.data.readers import READERS, read_file_rows
from prefdistill.errors import UserError

NAMES = HEADER.split(",")


def write_file(path, rows, names=NAMES):
    """Write rows of cells in the format that the suffix of the path names."""
    if path.name.endswith(".parquet"):
        columns = map(pa.array, zip(*rows, strict=True))
        pq.write_table(pa.table(dict(zip(names, columns, strict=True))), path)
        return path
    if ".jsonl" in path.name:
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
        path.write_text("\n".join([*lines, ""]))
    else:
        write_csv(path, rows, ",".join(names))
    content = path.read_bytes()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content))
    elif path.suffix == ".zst":
        path.write_bytes(pa.compress(content, codec="zstd", asbytes=True))
    return path


def read(path, source="train"):
    """Read all rows of a file, and its counts."""
    counts = ImportedFile(str(path), source)
    return list(read_file_rows(path, source, counts)), counts


TURNS = st.lists(st.text(max_size=8), max_size=3)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.tuples(TURNS, TURNS, TURNS), min_size=1, max_size=4))
def test_any_text_survives(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("pairs")
    raw = [kaggle_row(n, *texts) for n, texts in enumerate(rows)]
    read_back, _ = import_files(folder, [write_csv(folder / "train.csv", raw)])
    texts = [(r["prompt"], r["response_a"], r["response_b"]) for r in read_back]
    assert texts == rows


@pytest.mark.parametrize("suffix", READERS)
def test_every_kind_of_file_reads_as_plain_csv_does(tmp_path, suffix):
    raw = [kaggle_row(n, [f"p{n}", "q"]) for n in range(5)]
    plain = write_csv(tmp_path / "plain.csv", raw)
    expected, _ = import_files(tmp_path, [plain])
    rows, _ = import_files(tmp_path, [str(write_file(tmp_path / f"t{suffix}", raw))])
    assert [{**row, "file": plain} for row in rows] == expected


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_rows_are_numbered_and_placed(tmp_path, suffix):
    path = write_file(tmp_path / f"t{suffix}", [kaggle_row(n) for n in range(3)])
    rows, _ = read(path)
    places = {
        ".csv": ["row 1 (line 2)", "row 2 (line 3)", "row 3 (line 4)"],
        ".jsonl": ["row 1 (line 1)", "row 2 (line 2)", "row 3 (line 3)"],
        ".parquet": ["row 1", "row 2", "row 3"],
    }
    assert [row.number for row in rows] == [1, 2, 3]
    assert [row.where for row in rows] == places[suffix]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_columns_may_come_in_any_order(tmp_path, suffix):
    order = [8, 3, 0, 1, 2, 4, 5, 7, 6]
    raw = kaggle_row(4, label=(0, 1, 0))
    names = [NAMES[place] for place in order]
    path = write_file(tmp_path / f"t{suffix}", [[raw[p] for p in order]], names)
    rows, _ = import_files(tmp_path, [str(path)])
    assert rows[0]["id"] == "train:4"
    assert rows[0]["winner_model_b"] == 1
    assert rows[0]["winner_tie"] == 0


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_unused_columns_are_named_in_the_report(tmp_path, suffix):
    names = [*NAMES, "label", "argmax"]
    path = write_file(tmp_path / f"t{suffix}", [[*kaggle_row(1), 2, 0]], names)
    _, counts = read(path)
    assert counts.ignored_columns == ["argmax", "label"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_labels_of_a_test_file_are_not_even_read(tmp_path, suffix):
    path = write_file(tmp_path / f"t{suffix}", [kaggle_row(1)])
    rows, counts = read(path, "test")
    assert rows[0].values[4:] == [None] * 5
    assert counts.ignored_columns == sorted([*NAMES[1:3], *NAMES[6:]])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_to_score_needs_only_texts(tmp_path, suffix):
    names = ("prompt", "response_b", "response_a")
    path = write_file(tmp_path / f"t{suffix}", [['["p"]', '["b"]', '["a"]']], names)
    rows, _ = read(path, SCORED)
    assert rows[0].values == [None, '["p"]', '["a"]', '["b"]', *[None] * 5]


def test_line_breaks_in_cells_do_not_split_rows(tmp_path):
    spaced = '[\n  "p",\n  "q"\n]'
    raw = [[1, "m", "n", spaced, '["a\nb"]', '["b"]', 1, 0, 0], kaggle_row(2)]
    rows, report = import_files(tmp_path, [write_csv(tmp_path / "t.csv", raw)])
    assert [row["row"] for row in rows] == [1, 2]
    assert rows[0]["prompt"] == ["p", "q"]
    assert rows[0]["response_a"] == ["a\nb"]
    assert report["repaired"] == {"raw_control_character": 1}


def test_a_fault_after_line_breaks_in_cells_names_its_line(tmp_path):
    raw = [kaggle_row(1), kaggle_row("x")]
    raw[0][3] = '["p\n"]'
    with pytest.raises(UserError, match=r"row 2 \(line 4\), column id"):
        import_files(tmp_path, [write_csv(tmp_path / "t.csv", raw)])


def test_repairs_are_counted(tmp_path):
    raw = "\ufeff" + "\r\n".join(
        [HEADER, '1,m,n,[null],"[""a""]","[""\\ud83d x\\ud83d\\ude00""]",1,0,0', "", ""]
    )
    (tmp_path / "t.csv").write_bytes(raw.encode())
    rows, report = import_files(tmp_path, [str(tmp_path / "t.csv")])
    assert rows[0]["prompt"] == [""]
    assert rows[0]["response_b"] == ["\ufffd x\U0001f600"]
    assert report["repaired"] == {
        "byte_order_mark": 1,
        "crlf_line_ends": 1,
        "blank_line": 1,
        "null_turn": 1,
        "lone_surrogate": 1,
    }


def test_refuses_an_oversized_cell(tmp_path, monkeypatch):
    monkeypatch.setattr("prefdistill.data.readers.MAX_CELL_CHARACTERS", 2 << 20)
    raw = kaggle_row()
    raw[3] = "x" * (3 << 20)
    with pytest.raises(UserError, match="a cell is larger than"):
        read(write_file(tmp_path / "t.csv", [raw]))


def test_refuses_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv: is not a file"):
        read(tmp_path / "none.csv")


BOMBS = {
    "one line.csv": b"prompt,response_a,response_b\n" + b"a" * (40 << 20),
    "one cell.csv": b'prompt,response_a,response_b\n"' + b"a\n" * (20 << 20),
    "cells.csv": b"prompt,response_a,response_b\n" + (b"a" * (1 << 20) + b",") * 40,
    "rows.csv": b"prompt,response_a,response_b\n" + b"[],[],[]\n" * (2 << 20),
    "blank.csv": b"prompt,response_a,response_b\n" + b"\n" * 1_100_000,
    "one line.jsonl": b" " * (40 << 20),
    "blank.jsonl": b"\n" * 1_100_000,
}


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("kind", BOMBS)
def test_a_compressed_file_that_would_fill_the_memory_is_refused(
    kind, suffix, tmp_path
):
    pack = {
        ".gz": gzip.compress,
        ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
    }
    path = tmp_path / f"{kind}{suffix}"
    path.write_bytes(pack[suffix](BOMBS[kind]))
    with pytest.raises(UserError, match=re.escape(kind)) as refused:
        for _ in read_file_rows(path, SCORED, ImportedFile(str(path), SCORED)):
            pass
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["one line.csv", "cells.csv", "one line.jsonl"])
def test_a_plain_file_of_one_huge_row_is_refused(name, tmp_path):
    path = tmp_path / name
    content = BOMBS[name]
    path.write_bytes(b"a" + content if name.endswith("jsonl") else content)
    with pytest.raises(UserError, match=r"larger than (16|32) MB"):
        read(path, SCORED)
