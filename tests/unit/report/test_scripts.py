"""Run the scripts from logits to the submission on the toy of every stage."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from average_predictions import main as average_predictions
from calibrate_judge import main as calibrate_judge
from symmetrise import main as symmetrise_script
from toy_stages import META, N_FOLDS, VIEWS, read_csv
from write_submission import main as write_submission

from prefdistill.errors import UserError
from prefdistill.scores.baselines import BASELINES_SCHEMA
from prefdistill.scores.metrics import log_loss
from prefdistill.scores.scaling import Scaling
from prefdistill.scores.views import (
    PROBABILITY_COLUMNS,
    RAW_COLUMNS,
    columns_of,
    pool_opinions,
    symmetrise,
)
from prefdistill.storage.logits import Logits, read_logits, write_logits
from prefdistill.storage.records import write_json
from prefdistill.storage.tables import read_table, write_table


@pytest.mark.parametrize("best", [False, True])
def test_average_predictions(toy, tmp_path, best):
    files = [toy.scores(f"fold{k}_bf16") for k in range(N_FOLDS)]
    output = tmp_path / "logits.npz"
    write_json(
        tmp_path / "weights.json", {"folds": [0, 1, 2], "weights": [0.2, 0.3, 0.5]}
    )
    average_predictions(
        files,
        tmp_path / "weights.json",
        toy.path("fold0.parquet") if best else None,
        output,
        folds=[0, 1, 2],
    )
    mean = read_logits(output)
    assert set(mean.split) == {"select", "test", "unlabelled"}
    models = [read_logits(path) for path in files]
    each = [m.logits[m.rows_of(mean.ids)] for m in models]
    if best:
        select = mean.split == "select"
        place = {name: row for row, name in enumerate(toy.ids.tolist())}
        label = toy.label[[place[name] for name in mean.ids[select]]]
        losses = [log_loss(symmetrise(z[select], VIEWS), label) for z in each]
        expected = each[int(np.argmin(losses))]
    else:
        expected = 0.2 * each[0] + 0.3 * each[1] + 0.5 * each[2]
    assert mean.logits == pytest.approx(expected, abs=1e-5)


def test_symmetrised_file_holds_calibrated_and_raw(toy):
    table = read_table(toy.path("gptq8.parquet"))
    scores = read_logits(toy.scores("gptq8"))
    assert table.column("id").to_pylist() == scores.ids.tolist()
    raw = columns_of(table, ["raw_a", "raw_b", "raw_tie"])
    assert raw == pytest.approx(symmetrise(scores.logits, VIEWS))
    assert not np.allclose(raw, columns_of(table, ["p_a", "p_b", "p_tie"]))


def test_one_view_is_enough(toy, tmp_path):
    both = read_logits(toy.scores("merged"))
    path, output = tmp_path / "one.npz", tmp_path / "one.parquet"
    one = replace(both, logits=both.logits[:, 1:], meta={"views": ["BA"]})
    write_logits(path, one)
    calibrate_judge(path, toy.path("fold0.parquet"), tmp_path / "c.json", "vector")
    symmetrise_script(path, tmp_path / "c.json", None, output, 0.0)
    table = read_table(output)
    probs = columns_of(table, ["p_a", "p_b", "p_tie"])
    rows = np.array(table.column("split").to_pylist()) == "test"
    place = {name: row for row, name in enumerate(toy.ids.tolist())}
    known = [place[name] for name in np.array(table.column("id").to_pylist())[rows]]
    assert log_loss(probs[rows], toy.label[known]) < 1.0


def test_symmetrise_pools_with_the_trees_by_id(tmp_path):
    ids = np.array(["a", "b", "c"])
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 2, 3)).astype(np.float32)
    split = np.array(["select", "test", "unlabelled"])
    write_logits(tmp_path / "logits.npz", Logits(ids, split, logits, META))
    write_json(tmp_path / "c.json", Scaling("none", True))
    trees = rng.dirichlet([1, 1, 1], 3)
    rows = [("trees", -1, "test", i, *p) for i, p in zip(ids, trees, strict=True)][::-1]
    rows += [
        ("trees", 0, "dev", "a", 1.0, 0.0, 0.0),
        ("prior", -1, "test", "a", *trees[1]),
    ]
    table = pa.Table.from_pylist(
        [dict(zip(BASELINES_SCHEMA.names, row, strict=True)) for row in rows]
    )
    write_table(tmp_path / "baselines.parquet", table, BASELINES_SCHEMA)
    output = tmp_path / "out.parquet"
    files = {
        "logits": tmp_path / "logits.npz", "calibration": tmp_path / "c.json",
        "trees": tmp_path / "baselines.parquet", "symmetrised": output,
    }  # fmt: skip
    symmetrise_script(**files, trees_weight=0.25)
    found = read_table(output)
    own = symmetrise(logits, VIEWS)
    pooled = pool_opinions(own, trees, 0.25)
    assert columns_of(found, PROBABILITY_COLUMNS) == pytest.approx(pooled)
    assert columns_of(found, RAW_COLUMNS) == pytest.approx(own)
    write_table(tmp_path / "baselines.parquet", table.slice(1), BASELINES_SCHEMA)
    with pytest.raises(UserError, match="the trees lack row id c"):
        symmetrise_script(**files, trees_weight=0.25)


def test_submission(toy, tmp_path):
    output = tmp_path / "submission.csv"
    unlabelled = toy.path("unlabelled.parquet")
    write_submission(toy.path("gptq8.parquet"), unlabelled, output)
    rows = read_csv(output)
    assert list(rows[0]) == ["id", "winner_model_a", "winner_model_b", "winner_tie"]
    assert [row["id"] for row in rows] == ["7", "3", "5"]
    for row in rows:
        probs = [float(value) for value in list(row.values())[1:]]
        assert all(math.isfinite(p) and p >= 0 for p in probs)
        assert sum(probs) == pytest.approx(1, abs=1e-12)


def test_submission_refuses_missing_and_unsound_rows(toy, tmp_path):
    table = read_table(toy.path("gptq8.parquet"))
    path, unlabelled = tmp_path / "s.parquet", toy.path("unlabelled.parquet")
    kept = pa.array([name != "test:3" for name in table.column("id").to_pylist()])
    write_table(path, table.filter(kept), table.schema)
    with pytest.raises(UserError, match="lacks row id test:3"):
        write_submission(path, unlabelled, tmp_path / "x.csv")
    broken = table.set_column(2, "p_a", pa.array([0.9] * len(table)))
    write_table(path, broken, table.schema)
    with pytest.raises(UserError, match="row id test:7 is not a distribution"):
        write_submission(path, unlabelled, tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()
