"""Properties of the import: refused in one line, or every row kept or counted."""

import random
from dataclasses import replace

import csv_fuzz
import pytest
from csv_fuzz import Finding, make_input, run_once
from hypothesis import given, settings
from hypothesis import strategies as st

NAMES = list(csv_fuzz.ROW_COLUMNS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def test_mutated_files_are_imported_or_refused(folder):
    outcomes = set()
    for number in range(600):
        kind, content = make_input(random.Random(f"test/{number}"))
        outcomes.add(run_once(folder / f"t.{kind}", content, kind))
    assert len(outcomes) > 40
    assert sum(outcome.startswith("imported") for outcome in outcomes) > 5


@settings(max_examples=100)
@given(content=st.binary(max_size=200), kind=st.sampled_from(csv_fuzz.KINDS))
def test_any_bytes_are_refused_in_one_line(folder, content, kind):
    run_once(folder / f"t.{kind}", content, kind)


@settings(max_examples=200)
@given(
    rows=st.lists(st.lists(st.text(max_size=8), min_size=9, max_size=9), max_size=4),
    kind=st.sampled_from(("csv", "jsonl", "csv.zst")),
)
def test_any_cells_are_imported_or_refused(folder, rows, kind):
    values = [dict(zip(NAMES, row, strict=True)) for row in rows]
    for number, row in enumerate(values):
        row |= {"id": number, "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}
        row["response_a"] = [row["response_a"]]
    content = csv_fuzz.encode(values, kind, random.Random(len(rows)))
    if kind == "csv.zst":
        content = csv_fuzz.pa.compress(content, codec="zstd", asbytes=True)
    run_once(folder / f"t.{kind}", content, kind)


def lose(rows):
    return rows[1:]


def double(rows):
    return [*rows, replace(rows[-1], values=[99, *rows[-1].values[1:]])]


@pytest.mark.parametrize("change", [lose, double])
def test_a_lost_or_doubled_row_is_a_finding(folder, monkeypatch, change):
    real = csv_fuzz.read_file_rows
    monkeypatch.setattr(csv_fuzz, "read_file_rows", lambda *a: change(list(real(*a))))
    values = (["p"], ["a"], ["b"], 1, 0, 0, "m", "m")
    rows = [dict(zip(NAMES, (n, *values), strict=True)) for n in range(3)]
    content = csv_fuzz.encode(rows, "jsonl", random.Random(0))
    with pytest.raises(Finding, match=r"3 rows, [24] counted"):
        run_once(folder / "t.jsonl", content, "jsonl")
