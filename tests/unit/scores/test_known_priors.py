"""Rows with an empty answer or equal ones: found, predicted, and compared."""

import csv

import numpy as np
import pyarrow as pa
import pytest
from compare_known_priors import main as compare_known_priors
from symmetrise import main as symmetrise

from prefdistill.scores.baselines import BASELINES_SCHEMA
from prefdistill.scores.calibration import Scaling
from prefdistill.scores.known_priors import apply_priors, row_kinds
from prefdistill.scores.views import columns_of, write_views
from prefdistill.storage.tables import (
    FOLD_SCHEMA,
    Logits,
    read_table,
    write_json,
    write_table,
)

VIEWS = ["AB", "BA"]
PRIORS = {"empty": [0.04, 0.88, 0.08], "identical": [0.06, 0.06, 0.88]}
ANSWERS = [
    (["one"], ["two"], ""),
    (["one", "two"], ["one two"], ""),  # the same words in other turns
    (["one"], ["one "], "identical"),
    (["a", "b"], ["a", " b\n"], "identical"),
    ([""], ["two"], "empty"),
    (["one"], [" \n\t", ""], "empty"),
    ([], ["two"], "empty"),
    ([""], ["", " "], "identical"),
    (["one"], ["ONE"], ""),
]


def table_of(n_copies=1, split="test"):
    """A fold table with every pair of answers, some copies of each."""
    answers = ANSWERS * n_copies
    ids = [f"row:{i}" for i in range(len(answers))]
    columns = {name: ids for name in ("id", "source", "group")}
    columns |= {"split": [split] * len(ids), "prompt": [["why"]] * len(ids)}
    columns["response_a"], columns["response_b"], _ = map(
        list, zip(*answers, strict=True)
    )
    label = np.random.default_rng(0).integers(3, size=len(ids))
    for place, name in enumerate(FOLD_SCHEMA.names[-3:]):
        columns[name] = (label == place).astype(int).tolist()
    return pa.Table.from_pydict(columns, FOLD_SCHEMA), np.array(ids), label


def test_kinds_are_found():
    table, _, _ = table_of()
    kinds, b_empty = row_kinds(table)
    assert kinds.tolist() == [kind for *_, kind in ANSWERS]
    assert np.flatnonzero(b_empty & (kinds == "empty")).tolist() == [5]
    empty = table.slice(0, 0)
    assert len(row_kinds(empty)[0]) == 0


def test_priors_are_against_the_empty_answer_in_either_place():
    probs = np.full((3, 3), 1 / 3)
    kinds = np.array(["empty", "empty", ""])
    found = apply_priors(probs, kinds, np.array([False, True, False]), PRIORS)
    assert found.tolist() == [PRIORS["empty"], [0.88, 0.04, 0.08], [1 / 3] * 3]
    assert (probs == 1 / 3).all()


def test_symmetrise_applies_them_by_id_and_leaves_the_raw_ones(tmp_path):
    table, ids, _ = table_of()
    write_table(tmp_path / "rows.parquet", table, FOLD_SCHEMA)
    order = np.random.default_rng(1).permutation(len(ids))
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(len(ids), 2, 3)).astype(np.float32)
    split = np.array(["test"] * len(ids))
    paths = [tmp_path / f"{view}.parquet" for view in VIEWS]
    write_views(paths, Logits(ids[order], split, logits, {}))
    write_json(tmp_path / "c.json", Scaling("none", True))
    for name, more in (("off", {}), ("on", {"priors": PRIORS})):
        output = tmp_path / f"{name}.parquet"
        tables = [tmp_path / "rows.parquet"]
        symmetrise(paths, tmp_path / "c.json", output, VIEWS, tables=tables, **more)
    off, on = (read_table(tmp_path / f"{name}.parquet") for name in ("off", "on"))
    assert on.column("id").to_pylist() == ids[order].tolist()
    before, after = (columns_of(t, ["p_a", "p_b", "p_tie"]) for t in (off, on))
    for row, place in enumerate(order):
        answers_a, _, kind = ANSWERS[place]
        expected = before[row] if not kind else np.array(PRIORS[kind])
        if kind == "empty" and "".join(answers_a).strip():  # B is the empty one
            expected = expected[[1, 0, 2]]
        assert after[row] == pytest.approx(expected)
    raw = ["raw_a", "raw_b", "raw_tie"]
    assert (columns_of(off, raw) == columns_of(on, raw)).all()


@pytest.mark.parametrize("n_copies", [1, 6])
def test_compare_known_priors(tmp_path, n_copies):
    table, ids, label = table_of(n_copies, "dev")
    extra = table.set_column(2, "split", pa.array(["select"] * len(ids)))
    extra = extra.set_column(0, "id", pa.array([f"s{i}" for i in ids]))
    both = pa.concat_tables([table, extra])
    write_table(tmp_path / "fold0.parquet", both, FOLD_SCHEMA)
    rng = np.random.default_rng(3)
    trees = rng.dirichlet([1, 1, 1], len(ids))
    rows = [("trees", 0, "dev", i, *p) for i, p in zip(ids, trees, strict=True)]
    rows = [dict(zip(BASELINES_SCHEMA.names, row, strict=True)) for row in rows[::-1]]
    baselines = pa.Table.from_pylist(rows)
    write_table(tmp_path / "baselines.parquet", baselines, BASELINES_SCHEMA)
    scores = Logits(
        np.array(both.column("id").to_pylist()),
        np.array(both.column("split").to_pylist()),
        np.float32(rng.normal(size=(len(both), 2, 3))),
        {},
    )
    paths = [tmp_path / f"{view}.parquet" for view in VIEWS]
    write_views(paths, scores)
    output = tmp_path / "table.csv"
    compare_known_priors(
        [tmp_path / "fold0.parquet"],
        tmp_path / "baselines.parquet",
        [paths],
        output,
        tmp_path / "table.md",
        VIEWS,
        PRIORS,
        "vector",
        {"n_bootstrap": 100, "seed": 0},
    )
    with open(output, newline="") as handle:
        found = {(row["model"], row["kind"]): row for row in csv.DictReader(handle)}
    assert set(found) == {(m, k) for m in ("trees", "students") for k in PRIORS}
    row = found["trees", "empty"]
    own, fixed, first_won = [], [], 0
    for place in range(len(ids)):
        answer_a, _, kind = ANSWERS[place % len(ANSWERS)]
        if kind == "empty":
            a_is_empty = not "".join(answer_a).strip()
            prior = [0.04, 0.88, 0.08] if a_is_empty else [0.88, 0.04, 0.08]
            own.append(-np.log(trees[place][label[place]]))
            fixed.append(-np.log(prior[label[place]]))
            first_won += label[place] == (0 if a_is_empty else 1)
    assert int(row["n"]) == len(own) == 3 * n_copies
    assert float(row["model_log_loss"]) == pytest.approx(np.mean(own), abs=1e-6)
    assert float(row["prior_log_loss"]) == pytest.approx(np.mean(fixed), abs=1e-6)
    assert int(row["first_won"]) == first_won
    assert (row["low"] == "") == (3 * n_copies < 10)
