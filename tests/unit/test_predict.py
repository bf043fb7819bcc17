"""Scoring a file with a finished judge, by the command."""

import csv
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from judge_samples import make_judge

from prefdistill.errors import UserError
from prefdistill.judge import Judge
from prefdistill.predict import OUTPUT_COLUMNS, predict, read_pairs
from prefdistill.scores.metrics import accuracy, log_loss
from prefdistill.storage.digests import file_digest

SCRIPTS = Path(__file__).resolve().parents[2] / "workflow/scripts"
NAMES = ("prompt", "response_a", "response_b")
LABELS = ("winner_model_a", "winner_model_b", "winner_tie")
ROWS = [
    (["tell me"], ["one answer"], ["another, longer answer"]),
    (["first", "and\nthen?"], ["a list", "of two"], ["no", "yes"]),
    (["tell  ME"], ["yes"], ['a "quoted" one']),
    (["is it?"], [""], ["it is"]),
]
WINNERS = [0, 2, 1, 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model_folder):
    scaling = {"method": "vector", "tied": True, "a": [0.9, 0.9, 1.1], "b": [0, 0, 0.1]}
    folder, base = tmp_path_factory.mktemp("judge"), tiny_model_folder("llama")
    return make_judge(folder, base, scaling=scaling)


@pytest.fixture(scope="module")
def expected(folder):
    return np.array(Judge.load(folder, "cpu").compare_batch(ROWS))


def write_input(path, rows=ROWS, *, ids=True, labels=None, plain=False):
    """A file of the kind that its name says."""
    content = []
    for number, row in enumerate(rows):
        values = {"id": f"q{number}"} if ids else {}
        as_list = path.name.endswith((".jsonl", ".parquet"))
        for name, turns in zip(NAMES, row, strict=True):
            text = turns[0] if plain else turns if as_list else json.dumps(turns)
            values[name] = text
        if labels:
            values |= {name: int(labels[number] == k) for k, name in enumerate(LABELS)}
        content.append(values)
    if path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(content), path)
    elif path.name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        opened = gzip.open if path.name.endswith(".gz") else open
        with opened(path, "wt", newline="") as handle:
            writer = csv.DictWriter(handle, list(content[0]))
            writer.writeheader()
            writer.writerows(content)
    return path


def read_output(path):
    with open(path, newline="") as handle:
        rows = list(csv.DictReader(handle))
    probs = np.array([[float(row[name]) for name in LABELS] for row in rows])
    return rows, probs


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "jsonl", "parquet"])
def test_every_kind_of_file_is_scored(kind, folder, expected, tmp_path):
    source = write_input(tmp_path / f"pairs.{kind}")
    output, scratch = tmp_path / "out.csv", tmp_path / "scratch"
    assert predict(folder, source, output, device="cpu", scratch=scratch) is None
    rows, probs = read_output(output)
    assert tuple(rows[0]) == OUTPUT_COLUMNS
    assert [row["id"] for row in rows] == ["q0", "q1", "q2", "q3"]
    np.testing.assert_allclose(probs, expected, atol=1e-6)
    best = [("a", "b", "tie")[k] for k in expected.argmax(axis=1)]
    assert [row["verdict"] for row in rows] == best
    assert all(0 <= float(row["order_gap"]) <= 1 for row in rows)
    assert not list(scratch.rglob("*.safetensors"))


def test_texts_may_be_plain_and_ids_may_be_absent(folder, tmp_path):
    single = [[[text[0]] for text in row] for row in ROWS]
    source = write_input(tmp_path / "pairs.csv", single, ids=False, plain=True)
    output = tmp_path / "out.csv"
    predict(folder, source, output, plain=True, device="cpu", scratch=tmp_path / "s")
    rows, probs = read_output(output)
    assert [row["id"] for row in rows] == ["1", "2", "3", "4"]
    same = np.array(Judge.load(folder, "cpu").compare_batch(single))
    np.testing.assert_allclose(probs, same, atol=1e-6)


def test_labels_are_scored_where_there_are_any(folder, expected, tmp_path):
    source = write_input(tmp_path / "pairs.csv", labels=WINNERS)
    # One row has no winner, and in another the three cells are blank.
    partial = write_input(tmp_path / "partial.csv", labels=[0, 2, 9, 1])
    lines = partial.read_text().splitlines(keepends=True)
    lines[-1] = lines[-1].replace("0,1,0", ",,")
    partial.write_text("".join(lines))
    output, scratch = tmp_path / "out.csv", tmp_path / "s"
    known = np.array(WINNERS)
    said = predict(folder, source, output, device="cpu", scratch=scratch)
    assert said.startswith("4 labelled pairs of 4: ")
    assert f"log loss {log_loss(expected, known):.4f} [" in said
    assert f"accuracy {accuracy(expected, known):.4f} [" in said
    said = predict(folder, partial, output, device="cpu", scratch=scratch)
    assert said.startswith("2 labelled pairs of 4: ")
    assert f"log loss {log_loss(expected[:2], known[:2]):.4f} [" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,prompt,response_a\n", "column response_b: is missing; .* a scored file"),
        (
            'prompt,response_a,response_b\nhello,"[""a""]","[""b""]"\n',
            r"row 1 \(line 2\), column prompt: .* add --plain \(make: PLAIN=1\)",
        ),
        (
            'id,prompt,response_a,response_b\n7,"[]","[]","[]"\n7,"[]","[]","[]"\n',
            r"row 2 \(line 3\), column id: 7 is there twice",
        ),
        (
            "prompt,response_a,response_b,winner_model_a\n[],[],[],1\n",
            "column winner_model_b: 'None' is not a label",
        ),
        ("prompt,response_a,response_b\n", "has no data rows"),
        ("", "is empty"),
    ],
)
def test_what_cannot_be_read_is_one_line(content, message, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as refused:
        read_pairs(path, plain=False)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(str(path))


def test_another_kind_of_output_is_refused_before_any_work(tmp_path):
    with pytest.raises(UserError, match=r"out\.xlsx: the output is a CSV"):
        predict(tmp_path, tmp_path / "pairs.csv", tmp_path / "out.xlsx")


SLOW = """
import time
from prefdistill import predict
from prefdistill.models import scoring as inference
real = inference.classify
inference.classify = lambda *given: time.sleep(0.1) or real(*given)
predict.main()
"""


def run_command(*arguments, slow=False):
    how = ["-c", SLOW] if slow else ["-m", "prefdistill.predict"]
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *how, *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip


def test_a_stopped_command_goes_on_where_it_was(folder, tmp_path):
    """SIGTERM while it scores, in a process of its own; then the same command."""
    rng = np.random.default_rng(0)
    many = [[["word " * int(n)] for n in rng.integers(20, 60, 3)] for _ in range(200)]
    source = write_input(tmp_path / "many.jsonl", many)
    again = (folder, source, tmp_path / "out.csv", "--scratch", tmp_path / "scratch")
    first = run_command(*again, "--device", "cpu", slow=True)
    for line in first.stderr:
        if "batches (" in line:
            first.send_signal(signal.SIGTERM)
            break
    rest = first.stderr.read()
    assert first.wait() == 143, rest
    assert "repeat the command to resume" in rest
    assert not (tmp_path / "out.csv").exists()
    assert len(list(tmp_path.glob("scratch/predict/*/*.safetensors"))) == 1
    second = run_command(*again, "--device", "cpu")
    _, log = second.communicate()
    assert second.returncode == 0, log
    assert "going on after" in log
    rows, probs = read_output(tmp_path / "out.csv")
    assert len(rows) == 200
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-9)
    assert not list(tmp_path.glob("scratch/predict/*"))


def test_the_command_says_an_error_in_one_line(tmp_path):
    command = run_command(tmp_path, tmp_path / "no.csv", tmp_path / "out.csv")
    said = command.communicate()
    assert command.returncode == 1
    expected = f"error: {tmp_path / 'no.csv'}: is not a file; check the input's path"
    assert said == ("", expected + "\n")


def test_the_output_is_checked_before_any_work(folder, tmp_path, monkeypatch):
    source = write_input(tmp_path / "pairs.csv")
    (tmp_path / "link.csv").symlink_to(source)
    os.link(source, tmp_path / "hard.csv")
    (tmp_path / "folder.csv").mkdir()
    copy = tmp_path / "judge"
    shutil.copytree(folder, copy)
    (tmp_path / "weights.csv").symlink_to(copy / "model.safetensors")
    content = source.read_bytes()
    monkeypatch.setattr(Judge, "load", None)  # it may not come to that
    for name, message in (
        ("pairs.csv", "which is read; name another"),
        ("link.csv", "which is read; name another"),
        ("hard.csv", "which is read; name another"),
        ("weights.csv", "model.safetensors, which is read"),
        ("folder.csv", "is a folder"),
    ):
        with pytest.raises(UserError, match=message):
            predict(copy, source, tmp_path / name, device="cpu")
    with pytest.raises(OSError, match=re.escape(str(source))):
        predict(copy, source, source / "out.csv", device="cpu")
    assert source.read_bytes() == content


def test_a_device_that_is_not_here_is_refused_before_the_judge_loads(
    folder, tmp_path, monkeypatch
):
    source = write_input(tmp_path / "pairs.csv")
    monkeypatch.setattr(Judge, "load", None)
    with pytest.raises(UserError, match="device 'gpu': is not here"):
        predict(folder, source, tmp_path / "out.csv", device="gpu")


def test_an_input_that_is_replaced_while_it_is_read_is_refused(
    folder, tmp_path, monkeypatch
):
    source = write_input(tmp_path / "pairs.csv")
    other = write_input(tmp_path / "other.csv", ROWS[::-1])

    def digest_late(path):
        other.replace(source)
        return file_digest(path)

    monkeypatch.setattr("prefdistill.predict.file_digest", digest_late)
    with pytest.raises(UserError, match=r"pairs\.csv: changed while it was read"):
        predict(folder, source, tmp_path / "out.csv", device="cpu")


def test_a_judge_that_is_replaced_while_it_is_loaded_is_refused(
    folder, tmp_path, monkeypatch
):
    source, copy = write_input(tmp_path / "pairs.csv"), tmp_path / "judge"
    shutil.copytree(folder, copy)
    load = Judge.load

    def load_and_replace(path, device):
        judge = load(path, device)
        (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text())
        return judge

    monkeypatch.setattr(Judge, "load", load_and_replace)
    with pytest.raises(UserError, match=r"tokenizer\.json: changed while it was read"):
        predict(copy, source, tmp_path / "out.csv", device="cpu")


def test_ids_come_back_from_the_output(folder, tmp_path, caplog):
    ids = ["a\rb", "c\nd", "=cmd|'/C calc'!A0", "-5", "'=x", "x;=1", "é"]
    source = tmp_path / "pairs.jsonl"
    rows = [dict(zip(NAMES, ROWS[0], strict=True), id=name) for name in ids]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    predict(folder, source, tmp_path / "out.csv", device="cpu", scratch=tmp_path / "s")
    found = [row["id"] for row in read_output(tmp_path / "out.csv")[0]]
    expected = list(ids)
    expected[2], expected[4] = "'=cmd|'/C calc'!A0", "''=x"
    assert found == expected
    assert "2 ids that a spreadsheet would run got an apostrophe" in caplog.text
