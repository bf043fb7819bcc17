"""The second view of uncertain rows only: choice on select, scoring, combination."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from calibrate_judge import main as calibrate_judge
from choose_second_view import main as choose_second_view
from predict_view import uncertain_rows
from scipy.special import softmax
from symmetrise import main as symmetrise

from prefdistill.errors import UserError
from prefdistill.pipeline.code_digests import SCRIPTS
from prefdistill.scores.budget import entropy, threshold_for
from prefdistill.scores.scaling import read_scaling
from prefdistill.scores.views import (
    columns_of,
    read_predictions,
    swap_classes,
    write_views,
)
from prefdistill.storage.tables import (
    FOLD_SCHEMA,
    Logits,
    read_json,
    read_table,
    write_table,
)

VIEWS = ["AB", "BA"]
SPLITS = ("select", "test", "unlabelled")
N_ROWS = 150


def test_entropy_is_that_of_a_plain_sum():
    probs = np.random.default_rng(0).dirichlet([1, 1, 1], 5)
    slow = [-sum(p * np.log(p) for p in row) for row in probs]
    assert entropy(probs) == pytest.approx(slow)
    assert entropy(np.array([[1.0, 0, 0]])) == pytest.approx([0])


@pytest.mark.parametrize("share", [0, 0.01, 0.25, 0.5, 0.99, 1])
def test_the_threshold_lets_the_share_pass(share):
    entropies = np.random.default_rng(1).random(200)
    threshold = threshold_for(entropies, share)
    passed = sum(each >= threshold for each in entropies)
    assert passed == round(share * 200)
    assert (np.sort(entropies)[::-1][:passed] >= threshold).all()


@pytest.fixture
def run(tmp_path):
    """Files of a judge with both views, and the record of a share of 0.3."""
    rng = np.random.default_rng(2)
    ids = np.array([f"row:{i}" for i in range(N_ROWS)])
    split = np.array(SPLITS)[np.arange(N_ROWS) % 3]
    latent = 2 * rng.normal(size=(N_ROWS, 3))
    label = (softmax(latent, axis=1).cumsum(axis=1) < rng.random((N_ROWS, 1))).sum(1)
    shown = np.stack([latent, swap_classes(latent)], axis=1)
    shown += rng.normal(size=shown.shape)
    write_views(
        [tmp_path / f"{view}.parquet" for view in VIEWS],
        Logits(ids, split, np.float32(2 * shown), {}),
    )
    hidden = split == "unlabelled"
    columns = {name: ids.tolist() for name in ("id", "source", "split", "group")}
    columns["split"] = split.tolist()
    columns |= dict.fromkeys(["prompt", "response_a", "response_b"], [["x"]] * N_ROWS)
    for place, name in enumerate(FOLD_SCHEMA.names[-3:]):
        hot = (label == place).astype(int).tolist()
        columns[name] = [None if h else v for h, v in zip(hidden, hot, strict=True)]
    table = pa.Table.from_pydict(columns, FOLD_SCHEMA)
    write_table(tmp_path / "rows.parquet", table, FOLD_SCHEMA)
    first, record = tmp_path / "AB.parquet", tmp_path / "second_view.json"
    choose_second_view(first, tmp_path / "rows.parquet", record, "AB", 0.3, "vector")
    return tmp_path


def test_the_choice_is_made_on_select(run):
    record = read_json(run / "second_view.json")
    assert record["shares"]["select"] == pytest.approx(0.3)
    first = read_predictions([run / "AB.parquet"], ["AB"])
    lower = first.logits.copy()
    lower[first.split != "select"] = 0  # the greatest entropy there is
    write_views([run / "other.parquet"], first.replace_logits(lower))
    path = run / "other.json"
    choose_second_view(
        run / "other.parquet", run / "rows.parquet", path, "AB", 0.3, "vector"
    )
    other = read_json(path)
    assert other["threshold"] == record["threshold"]
    assert other["shares"]["test"] == 1


def test_a_share_below_one_row_of_select_is_one_line(run):
    with pytest.raises(UserError, match=r"second_view_share: 0\.001 .* 50 rows"):
        choose_second_view(
            run / "AB.parquet",
            run / "rows.parquet",
            run / "x.json",
            "AB",
            0.001,
            "vector",
        )


def test_only_uncertain_unlabelled_rows_are_scored_and_combined(run):
    """Against both views of all rows, with a loop over rows."""
    table = read_table(run / "rows.parquet", FOLD_SCHEMA)
    kept = uncertain_rows(table, run / "AB.parquet", run / "second_view.json")
    full = read_predictions([run / "AB.parquet", run / "BA.parquet"], VIEWS)
    second = read_predictions([run / "BA.parquet"], ["BA"])
    order = np.random.default_rng(3).permutation(len(kept))  # joined by id
    names = np.array(kept.column("id").to_pylist())[order]
    short = second.select(second.rows_of(names))
    write_views([run / "short.parquet"], short)
    paths = [run / "AB.parquet", run / "short.parquet"]
    calibrate_judge(paths, run / "rows.parquet", run / "c.json", VIEWS, "vector")
    output = run / "symmetrised.parquet"
    symmetrise(paths, run / "c.json", output, VIEWS, run / "second_view.json")
    found = columns_of(read_table(output), ["p_a", "p_b", "p_tie"])

    record = read_json(run / "second_view.json")
    one, two = record["calibration"], read_scaling(run / "c.json")
    n_second = {split: 0 for split in SPLITS}
    for row in range(N_ROWS):
        logits = full.logits[row].astype(float)
        probs = softmax(np.array(one["a"]) * logits[0] + one["b"])
        if -(probs * np.log(probs)).sum() >= record["threshold"]:
            n_second[full.split[row]] += 1
            assert full.ids[row] in names
            first, swapped = softmax(two.apply(logits), axis=1)
            probs = (first + swapped[[1, 0, 2]]) / 2
        elif full.split[row] == "unlabelled":
            assert full.ids[row] not in names
        assert found[row] == pytest.approx(probs)
    assert 0 < n_second["unlabelled"] < 50
    assert len(names) == 100 + n_second["unlabelled"]


def test_an_uncertain_row_without_its_second_view_is_one_line(run):
    second = read_predictions([run / "BA.parquet"], ["BA"])
    write_views([run / "short.parquet"], second.select(second.split == "select"))
    calibrate_judge(
        [run / "AB.parquet", run / "short.parquet"],
        run / "rows.parquet",
        run / "c.json",
        VIEWS,
        "vector",
    )
    with pytest.raises(UserError, match="ids have no logits, such as row:"):
        symmetrise(
            [run / "AB.parquet", run / "short.parquet"],
            run / "c.json",
            run / "out.parquet",
            VIEWS,
            run / "second_view.json",
        )


def test_a_job_with_a_model_goes_without_scipy():
    """As ``predict_view`` hides it, and asks this module for its rows."""
    code = (
        "from prefdistill.models.quick_imports import hide_unused_imports\n"
        "hide_unused_imports('scipy', 'sklearn')\n"
        "import prefdistill.scores.budget\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(SCRIPTS)}, check=True
    )
