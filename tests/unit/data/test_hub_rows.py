import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_samples import import_files, kaggle_row, write_csv

from prefdistill.errors import UserError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Give a function that writes a local data set, with a temporary cache."""
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
    rows, report = import_files(tmp_path, [entry])
    same, _ = import_files(tmp_path, [write_csv(tmp_path / "t.csv", raw)])
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
    train = write_csv(tmp_path / "t.csv", [kaggle_row()])
    rows, report = import_files(tmp_path, [train], extra=[entry])
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
    rows, _ = import_files(tmp_path, [entry])
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
        import_files(tmp_path, [entry])


def test_conversations_that_differ_in_their_questions_are_refused(tmp_path, hub):
    """Two answers to different questions are no pair."""
    sides = {
        f"conversation_{side}": [
            [
                {"role": "user", "content": f"question {side}"},
                {"role": "assistant", "content": "answer"},
            ]
        ]
        for side in "ab"
    }
    entry = hub({**sides, "winner": ["tie"]})
    entry["columns"] = {name: name for name in (*sides, "winner")}
    with pytest.raises(UserError, match="row 1, column conversation_b: its user turns"):
        import_files(tmp_path, [entry])


def test_a_winner_of_an_unlabelled_source_is_not_read(tmp_path, hub):
    texts = {name: [["x"]] for name in ("prompt", "response_a", "response_b")}
    entry = hub({**texts, "winner": ["no winner of ours"]})
    entry["columns"] = {"winner": "winner"}
    train = write_csv(tmp_path / "t.csv", [kaggle_row()])
    rows, report = import_files(tmp_path, [train], test=entry)
    assert rows[1]["winner_tie"] is None
    assert report["files"][1]["ignored_columns"] == ["winner"]
