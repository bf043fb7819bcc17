import math

import numpy as np
import pyarrow as pa
import pytest
from weigh_folds import main as weigh_folds

from prefdistill.errors import UserError
from prefdistill.scores.baselines import BASELINES_SCHEMA
from prefdistill.scores.fold_weights import (
    advantage_weights,
    advantages,
    best_fold,
    fold_reward,
    fold_weights,
)
from prefdistill.scores.metrics import Labels
from prefdistill.storage.logits import Logits, write_logits
from prefdistill.storage.records import read_json
from prefdistill.storage.tables import FOLD_SCHEMA, write_table

META = {"views": ["AB", "BA"]}


def test_weights_are_normalised():
    assert fold_weights("equal", 4).tolist() == [0.25] * 4
    assert fold_weights([1, 3], 2).tolist() == [0.25, 0.75]


@pytest.mark.parametrize("given", [[1, 1], [1, 0, 1], [1, -1, 1], [1, float("nan"), 1]])
def test_unusable_weights_are_refused(given):
    with pytest.raises(UserError, match=r"ensemble\.fold_weights"):
        fold_weights(given, 3)


def test_best_fold_is_chosen_on_select_only():
    ids = np.array([f"train:{i}" for i in range(4)])
    split = np.array(["select", "select", "test", "test"])
    labels = Labels(ids, split, np.array([0, 1, 2, 2]), ids, np.array(["train"] * 4))
    good = np.zeros((4, 2, 3), np.float32)
    good[0, :, :] = [[2, 0, 0], [0, 2, 0]]
    good[1, :, :] = [[0, 2, 0], [2, 0, 0]]
    good[2:, :, 2] = -5  # poor on test, which must not count
    flat = np.zeros((4, 2, 3), np.float32)
    models = [Logits(ids, split, flat, META), Logits(ids, split, good, META)]
    assert best_fold([0, 2], models, labels) == 2
    with pytest.raises(UserError, match="select_fraction"):
        best_fold([0, 2], models, labels.rows(split == "test"))


def test_weigh_folds_writes_what_it_did(tmp_path):
    path = tmp_path / "weights.json"
    weigh_folds([], [], [], path, [0, 1, 2], "equal", None)
    record = read_json(path)
    assert record["method"] == "equal"
    assert record["folds"] == [0, 1, 2]
    assert sum(record["weights"]) == pytest.approx(1)
    weigh_folds([], [], [], path, [0, 1], [1, 3], None)
    expected = {"folds": [0, 1], "weights": [0.25, 0.75], "method": "given"}
    assert read_json(path) == expected


def slow_weights(rewards, temperature):
    """Each fold against the mean of the others, one at a time."""
    raw = []
    for k, own in enumerate(rewards):
        others = [r for j, r in enumerate(rewards) if j != k]
        raw.append(math.exp((own - sum(others) / len(others)) / temperature))
    return [each / sum(raw) for each in raw]


@pytest.mark.parametrize("n_folds", [2, 3, 5])
def test_weights_by_advantage_are_those_of_a_plain_loop(n_folds):
    rewards = np.random.default_rng(n_folds).normal(-0.5, 0.1, n_folds)
    found = advantage_weights(rewards, 0.07)
    assert found == pytest.approx(slow_weights(rewards.tolist(), 0.07))
    assert found.sum() == pytest.approx(1)
    assert advantages(rewards).sum() == pytest.approx(0, abs=1e-12)
    assert advantage_weights(rewards - 3, 0.07) == pytest.approx(found)


def test_no_fold_is_discarded_and_the_best_of_bad_ones_leads():
    weights = advantage_weights(np.array([-0.9, -0.2, -2.0]), 0.05)
    assert (weights > 0).all()
    assert weights.argmax() == 1
    warm = advantage_weights(np.array([-0.9, -0.2, -2.0]), 1e6)
    assert warm == pytest.approx([1 / 3] * 3, abs=1e-5)
    with pytest.raises(UserError, match=r"advantage\.temperature"):
        advantage_weights(np.array([0.0, 1.0]), 1e-4)


def fold_of(folder, k, rng, n=40):
    """A fold file, its student's predictions, and its rows of the baselines."""
    ids = [f"train:{i}" for i in range(n)] + [f"train:{1000 * k + i}" for i in range(n)]
    split = ["select"] * n + ["dev"] * n
    label = rng.integers(3, size=2 * n)
    targets = np.eye(3, dtype=np.int8)[label].T
    texts = [["text"]] * (2 * n)
    columns = [ids, ["train"] * (2 * n), split, ids, texts, texts, texts, *targets]
    table = pa.Table.from_arrays(list(map(pa.array, columns)), FOLD_SCHEMA.names)
    write_table(folder / f"fold{k}.parquet", table, FOLD_SCHEMA)
    logits = rng.normal(size=(2 * n, 2, 3)).astype(np.float32)
    scores = Logits(np.array(ids), np.array(split), logits, META)
    write_logits(folder / f"{k}.npz", scores)
    shares = rng.dirichlet([2, 2, 2], n)
    rows = zip(ids[n:], shares.tolist(), strict=True)
    return scores, label, [("trees", k, "dev", i, *share) for i, share in rows]


def slow_reward(scores, label, rows, base=None):
    """Mean log probability of the verdicts, row by row, beyond the baseline's."""
    total = 0.0
    for place, row in enumerate(rows):
        first, second = np.exp(scores.logits[row].astype(float))
        p = first / first.sum() / 2 + second[[1, 0, 2]] / second.sum() / 2
        total += math.log(p[label[row]])
        if base is not None:
            total -= math.log(base[place][4 + label[row]])
    return total / len(rows)


def softmax_rows(scores, rows):
    """Averaged probabilities in the place that a row of the baselines has them."""
    found = []
    for row in rows:
        first, second = np.exp(scores.logits[row].astype(float))
        mean = first / first.sum() / 2 + second[[1, 0, 2]] / second.sum() / 2
        found.append([None] * 4 + mean.tolist())
    return found


@pytest.mark.parametrize("baseline", ["trees", "ema", "none"])
def test_weigh_folds_by_advantage(tmp_path, baseline):
    rng = np.random.default_rng(1)
    folds = [fold_of(tmp_path, k, rng) for k in (1, 2, 3)]
    rows = [row for _, _, part in folds for row in part]
    rng.shuffle(rows)  # joined by fold and id, not by place
    table = pa.Table.from_pylist(
        [dict(zip(BASELINES_SCHEMA.names, row, strict=True)) for row in rows]
    )
    write_table(tmp_path / "baselines.parquet", table, BASELINES_SCHEMA)
    paths = {"trees": [tmp_path / "baselines.parquet"], "none": [], "ema": []}
    means = []
    for scores, _, _ in folds:
        logits = rng.normal(size=scores.logits.shape).astype(np.float32)
        means.append(scores.replace_logits(logits))
        paths["ema"].append(tmp_path / f"ema{len(means)}.npz")
        write_logits(paths["ema"][-1], means[-1])
    path = tmp_path / "weights.json"
    weigh_folds(
        fold_files=[tmp_path / f"fold{k}.parquet" for k in (1, 2, 3)],
        students=[tmp_path / f"{k}.npz" for k in (1, 2, 3)],
        baselines=paths[baseline],
        weights=path,
        folds=[1, 2, 3],
        fold_weights="advantage",
        advantage={"temperature": 0.1, "baseline": baseline},
    )
    record = read_json(path)
    where = range(40, 80) if baseline == "trees" else range(40)
    against = {
        "trees": [part for *_, part in folds],
        "ema": [softmax_rows(mean, where) for mean in means],
        "none": [None] * 3,
    }
    expected = [
        slow_reward(scores, label, where, base)
        for (scores, label, _), base in zip(folds, against[baseline], strict=True)
    ]
    assert record["split"] == ("dev" if baseline == "trees" else "select")
    assert [each["mean"] for each in record["rewards"]] == pytest.approx(expected)
    assert record["weights"] == pytest.approx(slow_weights(expected, 0.1))
    assert record["folds"] == [1, 2, 3]
    assert (record["temperature"], record["baseline"]) == (0.1, baseline)


def test_a_baseline_that_lacks_a_row_is_one_line(tmp_path):
    scores, label, rows = fold_of(tmp_path, 1, np.random.default_rng(0))
    dev = scores.select(scores.split == "dev")
    known = Labels(dev.ids, dev.split, label[40:], dev.ids, dev.split)
    with pytest.raises(UserError, match="no labelled rows to weigh"):
        fold_reward(scores, known, "select")
    table = [dict(zip(BASELINES_SCHEMA.names, r, strict=True)) for r in rows[1:]]
    table = pa.Table.from_pylist(table)
    write_table(tmp_path / "baselines.parquet", table, BASELINES_SCHEMA)
    with pytest.raises(UserError, match="trees has no prediction of row id train:1000"):
        weigh_folds(
            [tmp_path / "fold1.parquet"],
            [tmp_path / "1.npz"],
            [tmp_path / "baselines.parquet"],
            tmp_path / "weights.json",
            [1],
            "advantage",
            {"temperature": 1.0, "baseline": "trees"},
        )
