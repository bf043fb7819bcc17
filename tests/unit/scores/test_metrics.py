import numpy as np
import pyarrow as pa
import pytest

from prefdistill.errors import UserError
from prefdistill.scores.metrics import (
    Labels,
    accuracy,
    brier,
    class_prior,
    ece,
    group_bootstrap,
    log_loss,
    read_labels,
    reliability,
    swap_agreement,
)
from prefdistill.storage.tables import FOLD_SCHEMA, write_table

PROBS = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]])
TRUTH = np.array([0, 2, 2])


def labels(split, label, source=None):
    n = len(label)
    return Labels(
        ids=np.array([f"train:{i}" for i in range(n)]),
        split=np.array(split),
        label=np.array(label),
        group=np.array([f"g{i % 3}" for i in range(n)]),
        source=np.array(source or ["train"] * n),
    )


def test_known_scores():
    assert log_loss(PROBS, TRUTH) == pytest.approx(-np.log([0.7, 0.3, 0.5]).mean())
    assert accuracy(PROBS, TRUTH) == pytest.approx(2 / 3)
    expected = np.mean([0.09 + 0.04 + 0.01, 0.01 + 0.36 + 0.49, 0.04 + 0.09 + 0.25])
    assert brier(PROBS, TRUTH) == pytest.approx(expected)


def test_log_loss_of_a_certain_mistake_is_clipped():
    probs = np.array([[1.0, 0.0, 0.0]])
    assert log_loss(probs, np.array([1])) == pytest.approx(-np.log(1e-15))
    assert log_loss(probs, np.array([0])) == 0


def test_ece_against_a_loop():
    rng = np.random.default_rng(0)
    probs, truth = rng.dirichlet([1, 1, 1], 500), rng.integers(3, size=500)
    total = 0.0
    for k in range(10):
        top = probs.max(axis=1)
        last = (k == 9) & (top == 1)
        rows = ((top >= k / 10) & (top < (k + 1) / 10)) | last
        if rows.any():
            hits = (probs[rows].argmax(axis=1) == truth[rows]).mean()
            total += rows.sum() * abs(top[rows].mean() - hits)
    assert ece(probs, truth, 10) == pytest.approx(total / 500)
    assert reliability(probs, truth, 10)[2].sum() == 500


def test_swap_agreement():
    second = PROBS.copy()
    second[0] = [0.1, 0.8, 0.1]
    assert swap_agreement(PROBS, second) == pytest.approx(2 / 3)


def test_bootstrap_equals_a_loop_over_rows():
    rng = np.random.default_rng(1)
    values, groups = rng.normal(size=40), rng.integers(7, size=40).astype(str)
    names = np.unique(groups)
    draws = np.random.default_rng(5).integers(len(names), size=(200, len(names)))
    means = [
        np.concatenate([values[groups == names[g]] for g in draw]).mean()
        for draw in draws
    ]
    span = group_bootstrap(values, groups, n_bootstrap=200, seed=5)
    assert span.mean == pytest.approx(values.mean())
    assert [span.low, span.high] == pytest.approx(np.quantile(means, [0.025, 0.975]))


def test_bootstrap_in_chunks_is_the_same(monkeypatch):
    rng = np.random.default_rng(1)
    values, groups = rng.normal(size=60), rng.integers(20, size=60)
    whole = group_bootstrap(values, groups, n_bootstrap=100)
    monkeypatch.setattr("prefdistill.scores.metrics._DRAWS_AT_ONCE", 70)
    assert group_bootstrap(values, groups, n_bootstrap=100) == whole


def test_bootstrap_widens_where_rows_share_prompts():
    rng = np.random.default_rng(2)
    effect = np.repeat(rng.normal(size=50), 10)
    rows = group_bootstrap(effect, np.arange(500))
    prompts = group_bootstrap(effect, np.repeat(np.arange(50), 10))
    assert prompts.high - prompts.low > 2 * (rows.high - rows.low)


def test_bootstrap_covers_the_mean():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        values = rng.normal(size=100)
        span = group_bootstrap(values, np.arange(100), n_bootstrap=200)
        covered += span.low < 0 < span.high
    assert 0.88 < covered / 200 < 0.99


def test_bootstrap_refuses_no_rows():
    with pytest.raises(ValueError, match="cannot pair"):
        group_bootstrap(np.zeros(0), np.zeros(0))


def test_labels_are_found_by_id():
    known = labels(["dev"] * 4, [0, 1, 2, 0])
    found = known.of(np.array(["train:2", "train:0"]))
    assert found.label.tolist() == [2, 0]
    with pytest.raises(UserError, match="train:9"):
        known.of(np.array(["train:1", "train:9"]))


def test_class_prior_is_smoothed_and_of_the_scored_sources():
    split = ["train"] * 5 + ["dev"]
    known = labels(split, [0, 0, 1, 2, 2, 0], ["train"] * 3 + ["extra"] * 2 + ["train"])
    assert class_prior(known) == pytest.approx(np.array([3, 2, 1]) / 6)


def test_read_labels_leaves_unlabelled_rows_out(tmp_path):
    texts = [["a", None]] * 3
    columns = [["x", "y", "z"], ["train"] * 3, ["select"] * 3, ["g"] * 3]
    columns += [texts, texts, texts, [1, 0, None], [0, 0, None], [0, 1, None]]
    table = pa.Table.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, FOLD_SCHEMA, strict=True)],
        schema=FOLD_SCHEMA,
    )
    write_table(tmp_path / "fold0.parquet", table, FOLD_SCHEMA)
    known = read_labels(tmp_path / "fold0.parquet")
    assert known.ids.tolist() == ["x", "y"]
    assert known.label.tolist() == [0, 2]
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(UserError, match="not a whole parquet file"):
        read_labels(tmp_path / "bad.parquet")
