import csv
import gzip
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from import_pairs import main

from prefdistill.data.pairs import CellFault, parse_id, parse_label, parse_turns
from prefdistill.errors import UserError
from prefdistill.storage.records import read_json
from prefdistill.storage.tables import PAIRS_SCHEMA, read_table

HEADER = (
    "id,model_a,model_b,prompt,response_a,response_b,"
    "winner_model_a,winner_model_b,winner_tie"
)
ROW = '{id},m,n,"[""p""]","[""a""]","[""b""]",1,0,0'


def kaggle_row(name=1, prompt=("p",), a=("a",), b=("b",), label=(1, 0, 0)):
    texts = [json.dumps(list(turns)) for turns in (prompt, a, b)]
    return [name, "m", "n", *texts, *label]


def write_csv(path, rows, header=HEADER):
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return str(path)


def run(folder, train, **others):
    data = {"train": train, "extra": [], "ultra": [], "test": None} | others
    main(folder / "pairs.parquet", folder / "import.json", data)
    table = read_table(folder / "pairs.parquet", PAIRS_SCHEMA)
    return table.to_pylist(), read_json(folder / "import.json")


def run_bytes(folder, content, name="train.csv", **others):
    (folder / name).write_bytes(content)
    return run(folder, [str(folder / name)], **others)


def lines(*rows):
    return "\n".join([HEADER, *rows, ""]).encode()


TURNS = st.lists(st.text(max_size=8), max_size=3)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.tuples(TURNS, TURNS, TURNS), min_size=1, max_size=4))
def test_any_text_survives(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("pairs")
    raw = [kaggle_row(n, *texts) for n, texts in enumerate(rows)]
    read, _ = run(folder, [write_csv(folder / "train.csv", raw)])
    assert [(r["prompt"], r["response_a"], r["response_b"]) for r in read] == rows


def test_row_is_typed_and_named(tmp_path):
    path = write_csv(
        tmp_path / "t.csv", [kaggle_row(7), kaggle_row(-3, label=(0, 0, 1))]
    )
    rows, report = run(tmp_path, [path])
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
    rows, report = run(
        tmp_path, [paths["train"]], extra=[paths["extra"]], ultra=[paths["ultra"]],
        test=test, unlabelled=[test],
    )  # fmt: skip
    counts = {"train": 2, "extra": 2, "ultra": 2, "test": 1, "unlabelled": 1}
    assert report["n_rows"] == counts
    assert len({row["id"] for row in rows}) == 8
    assert [row["winner_tie"] for row in rows[-2:]] == [None, None]


def test_labels_of_a_test_file_are_ignored(tmp_path):
    path = write_csv(tmp_path / "t.csv", [kaggle_row(1)])
    rows, report = run(tmp_path, [path], test=path)
    assert rows[1]["winner_model_a"] is None
    assert "winner_model_a" in report["files"][1]["ignored_columns"]


def test_targets_that_are_not_one_hot_are_left_to_cleaning(tmp_path):
    raw = [kaggle_row(1, label=(0, 0, 0)), kaggle_row(2, label=(1, 1, 0))]
    rows, _ = run(tmp_path, [write_csv(tmp_path / "t.csv", raw)])
    assert [r["winner_model_a"] + r["winner_model_b"] for r in rows] == [0, 2]


def test_helper_column_is_ignored_and_named(tmp_path):
    raw = [[*kaggle_row(1), 2, 0]]
    path = write_csv(tmp_path / "t.csv", raw, HEADER + ",label,argmax")
    _, report = run(tmp_path, [path])
    assert report["files"][0]["ignored_columns"] == ["argmax", "label"]


def test_column_order_is_free(tmp_path):
    order = [8, 3, 0, 1, 2, 4, 5, 7, 6]
    names = HEADER.split(",")
    raw = [[kaggle_row(4, label=(0, 1, 0))[place] for place in order]]
    path = write_csv(tmp_path / "t.csv", raw, ",".join(names[p] for p in order))
    rows, _ = run(tmp_path, [path])
    assert rows[0]["id"] == "train:4"
    assert rows[0]["winner_model_b"] == 1


def test_line_breaks_in_cells_do_not_split_rows(tmp_path):
    spaced = '[\n  "p",\n  "q"\n]'
    raw = [[1, "m", "n", spaced, '["a\nb"]', '["b"]', 1, 0, 0], kaggle_row(2)]
    rows, report = run(tmp_path, [write_csv(tmp_path / "t.csv", raw)])
    assert [row["row"] for row in rows] == [1, 2]
    assert rows[0]["prompt"] == ["p", "q"]
    assert rows[0]["response_a"] == ["a\nb"]
    assert report["repaired"] == {"raw_control_character": 1}


def test_repairs_are_counted(tmp_path):
    raw = "\ufeff" + "\r\n".join(
        [HEADER, '1,m,n,[null],"[""a""]","[""\\ud83d x\\ud83d\\ude00""]",1,0,0', "", ""]
    )
    rows, report = run_bytes(tmp_path, raw.encode())
    assert rows[0]["prompt"] == [""]
    assert rows[0]["response_b"] == ["\ufffd x\U0001f600"]
    assert report["repaired"] == {
        "byte_order_mark": 1,
        "crlf_line_ends": 1,
        "blank_line": 1,
        "null_turn": 1,
        "lone_surrogate": 1,
    }


def test_gzip_and_parquet_read_as_csv_does(tmp_path):
    raw = [kaggle_row(n, [f"p{n}", "q"]) for n in range(5)]
    plain = write_csv(tmp_path / "t.csv", raw)
    expected, _ = run(tmp_path, [plain])
    content = (tmp_path / "t.csv").read_bytes()
    zipped, _ = run_bytes(tmp_path, gzip.compress(content), "t.csv.gz")
    columns = list(zip(*raw, strict=True))
    table = pa.table(dict(zip(HEADER.split(","), map(pa.array, columns), strict=True)))
    pq.write_table(table, tmp_path / "t.parquet")
    typed, _ = run(tmp_path, [str(tmp_path / "t.parquet")])
    for rows in (zipped, typed):
        assert [{**r, "file": plain} for r in rows] == expected


def test_batches_are_written_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("prefdistill.data.pairs.BATCH_ROWS", 3)
    raw = [kaggle_row(n) for n in range(10)]
    rows, _ = run(tmp_path, [write_csv(tmp_path / "t.csv", raw)])
    assert [row["id"] for row in rows] == [f"train:{n}" for n in range(10)]


GOOD = ROW.format(id=1)


def test_line_of_a_row_after_embedded_line_breaks(tmp_path):
    bad = ROW.format(id="x")
    with pytest.raises(UserError, match=r"row 2 \(line 4\), column id"):
        run_bytes(tmp_path, lines(GOOD.replace('""p""', '""p\n""'), bad))


def test_refuses_an_oversized_cell(tmp_path, monkeypatch):
    monkeypatch.setattr("prefdistill.data.readers.MAX_CELL_BYTES", 2 << 20)
    cell = "x" * (3 << 20)
    with pytest.raises(UserError, match="a cell is larger than"):
        run_bytes(tmp_path, lines(f"1,m,n,{cell},[],[],1,0,0"))


def test_refuses_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv: is not a file"):
        run(tmp_path, [str(tmp_path / "none.csv")])
    with pytest.raises(UserError, match=r"data\.train: is empty"):
        run(tmp_path, [])


def test_id_twice_in_two_files_of_a_source(tmp_path):
    paths = [write_csv(tmp_path / f"{n}.csv", [kaggle_row(5)]) for n in "ab"]
    with pytest.raises(
        UserError, match=r"b\.csv, row 1 .*column id: 5 occurs a second"
    ):
        run(tmp_path, paths)


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_64_bit_id_is_kept_as_written(number):
    assert parse_id(str(number)) == parse_id(number) == str(number)


@pytest.mark.parametrize("value", ["01", "+1", " 1", "1_0", "١", None, True, "0x1"])
def test_other_ids_are_refused(value):
    with pytest.raises(CellFault):
        parse_id(value)


@pytest.mark.parametrize("value", [True, 1, 1.0, "1"])
def test_typed_labels(value):
    assert parse_label(value, "winner_tie") == 1


@pytest.mark.parametrize("value", [float("nan"), None, 2, -1, "01", "1.0", " 1", 0.5])
def test_other_labels_are_refused(value):
    with pytest.raises(CellFault):
        parse_label(value, "winner_tie")


@settings(deadline=None)
@given(st.text(max_size=40))
def test_no_cell_is_ever_evaluated_or_fails_oddly(cell):
    try:
        turns = parse_turns(cell, "prompt", Counter())
    except CellFault:
        return
    assert all(isinstance(turn, str) for turn in turns)
    "".join(turns).encode()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Writes a local data set directory; its cache lies in a temporary folder."""
    datasets = pytest.importorskip("datasets")
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)

    def write(table, name="train.parquet"):
        folder = tmp_path / "hub"
        folder.mkdir(exist_ok=True)
        if name.endswith(".csv"):
            write_csv(folder / name, table)
        else:
            pq.write_table(pa.table(table), folder / name)
        return {"hub": str(folder), "revision": None, "split": "train", "columns": {}}

    return write


def test_hub_data_set_of_the_kaggle_shape(tmp_path, hub):
    raw = [kaggle_row(n, [f"p{n}"], [None, "a\nb"]) for n in range(3)]
    entry = hub(raw, "train.csv")
    rows, report = run(tmp_path, [entry])
    same, _ = run(tmp_path, [write_csv(tmp_path / "t.csv", raw)])
    ours = [{**row, "file": ""} for row in rows]
    assert ours == [{**row, "file": ""} for row in same]
    assert report["repaired"] == {"null_turn": 3}


def test_hub_columns_are_mapped(tmp_path, hub):
    entry = hub(
        {
            "question_id": ["58210e", "90bfd1", "aa", "ab"],
            "winner": ["model_a", "model_b", "tie", "tie (bothbad)"],
            "conversation_a": [
                [
                    {"role": "user", "content": "p"},
                    {"role": "assistant", "content": "a"},
                ]
            ]
            * 4,
            "conversation_b": [
                [
                    {"role": "user", "content": "p"},
                    {"role": "assistant", "content": "b"},
                ]
            ]
            * 4,
            "judge": ["x"] * 4,
        }
    )
    entry["columns"] = {
        "id": "question_id",
        "winner": "winner",
        "conversation_a": "conversation_a",
        "conversation_b": "conversation_b",
        "prompt": None,
    }
    rows, report = run(tmp_path, [write_csv(tmp_path / "t.csv", [kaggle_row()])],
                       extra=[entry])  # fmt: skip
    rows = rows[1:]
    assert [row["id"] for row in rows[:2]] == ["extra:58210e", "extra:90bfd1"]
    assert [row["winner_tie"] for row in rows] == [0, 0, 1, 1]
    assert (rows[0]["prompt"], rows[0]["response_b"]) == (["p"], ["b"])
    assert report["files"][1]["ignored_columns"] == ["judge"]


def test_hub_lists_of_turns_without_ids(tmp_path, hub):
    columns = {name: [["x", None]] for name in ("question", "one", "two")}
    entry = hub({**columns, "who": ["tie"]})
    entry["columns"] = {
        "prompt": "question", "response_a": "one", "response_b": "two", "winner": "who"
    }  # fmt: skip
    rows, _ = run(tmp_path, [entry])
    assert rows[0]["id"] == "train:1"
    assert rows[0]["response_a"] == ["x", ""]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": {"prompt": "text"}}, r"columns\.prompt: it has no column text"),
        ({"columns": {"winner": "model_a"}}, "row 1, column winner: 'm' is none of"),
        ({"split": "validation"}, "cannot be loaded"),
        ({"hub": "/nowhere/at/all"}, "cannot be loaded"),
    ],
)
def test_hub_faults_are_one_line(tmp_path, hub, change, message):
    entry = hub([kaggle_row()], "train.csv") | change
    with pytest.raises(UserError, match=message):
        run(tmp_path, [entry])
