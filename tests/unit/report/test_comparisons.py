"""Comparisons of fixed models, run on models that see a known judge through noise."""

import csv
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from compare_budgets import main as compare_budgets
from compare_ensembles import main as compare_ensembles
from scipy.special import softmax
from two_processes import DISTILLATION

from prefdistill.pipeline.ensembles import Ensembles
from prefdistill.report.comparisons import compare
from prefdistill.running.job import UserError
from prefdistill.scores.budget import mix_passes
from prefdistill.scores.calibration import calibrate_judge
from prefdistill.scores.metrics import Labels, read_labels
from prefdistill.scores.views import swap_classes, symmetrise, write_views
from prefdistill.storage.tables import FOLD_SCHEMA, Logits, write_table

VIEWS = ["AB", "BA"]
N_ROWS = 400
EVALUATION = {"n_bootstrap": 200, "seed": 0, "n_bins": 10}


class Toy:
    """Rows of select and test, their fold file, and models that see the judge."""

    def __init__(self, folder):
        rng = np.random.default_rng(0)
        self.folder = folder
        self.ids = np.array([f"train:{i}" for i in range(N_ROWS)])
        self.split = np.where(np.arange(N_ROWS) % 3 == 0, "select", "test")
        self.latent = 1.5 * rng.normal(size=(N_ROWS, 3))
        drawn = softmax(self.latent, axis=1).cumsum(axis=1)
        self.label = (drawn < rng.random((N_ROWS, 1))).sum(axis=1)
        columns = {
            "id": self.ids.tolist(),
            "source": ["train"] * N_ROWS,
            "split": self.split.tolist(),
            "group": [f"g{i // 6}" for i in range(N_ROWS)],
            **dict.fromkeys(["prompt", "response_a", "response_b"], [["x"]] * N_ROWS),
        }
        for place, name in enumerate(FOLD_SCHEMA.names[-3:]):
            columns[name] = (self.label == place).astype(int).tolist()
        self.fold = folder / "fold0.parquet"
        table = pa.Table.from_pydict(columns, FOLD_SCHEMA)
        write_table(self.fold, table, FOLD_SCHEMA)

    def model(self, name, seed, noise):
        """Write a model's views; its logits are twice too sharp."""
        rng = np.random.default_rng(seed)
        seen = np.stack([self.latent, swap_classes(self.latent)], axis=1)
        logits = np.float32(2 * (seen + noise * rng.normal(size=seen.shape)))
        paths = [self.folder / f"{name}.{view}.parquet" for view in VIEWS]
        write_views(paths, Logits(self.ids, self.split, logits, {}))
        return paths, logits


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path)


def rows_of(path):
    with open(path, newline="") as handle:
        return {row.pop(next(iter(row))): row for row in csv.DictReader(handle)}


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    ids = np.arange(300).astype(str)
    labels = Labels(ids, ids, rng.integers(3, size=300), ids, ids)
    first = rng.dirichlet([1, 1, 1], 300)
    second = 0.99 * first + 0.01 * np.eye(3)[labels.label]  # better in every row
    rows = compare({"a": first, "b": second}, "a", labels, n_bootstrap=200, seed=0)
    slow = [
        sum(-np.log(p[c]) for p, c in zip(probs, labels.label, strict=True)) / 300
        for probs in (first, second)
    ]
    assert [row["log_loss"] for row in rows] == pytest.approx(slow)
    assert rows[0]["difference"] is None
    assert rows[1]["difference"] == pytest.approx(slow[1] - slow[0])
    assert rows[1]["difference_high"] < 0
    assert rows[1]["low"] < rows[0]["log_loss"]  # unpaired they overlap


def test_compare_ensembles(toy):
    ensembles = {
        "delta_mean": toy.model("delta_mean", 1, 0.5)[0],
        "factor_mean": toy.model("factor_mean", 2, 3.0)[0],
    }
    students = [toy.model(f"fold{k}", 10 + k, noise) for k, noise in ((0, 2), (1, 0.3))]
    table, text = toy.folder / "ensemble.csv", toy.folder / "ensemble.md"
    compare_ensembles(
        toy.fold,
        ensembles,
        {k: paths for k, (paths, _) in enumerate(students)},
        table,
        text,
        VIEWS,
        "vector",
        EVALUATION,
    )
    rows = rows_of(table)
    assert list(rows) == [
        *("delta_mean", "factor_mean", "fold_logits", "fold_probabilities"),
        "best_fold",
    ]
    losses = {name: float(row["log_loss"]) for name, row in rows.items()}
    assert losses["best_fold"] < losses["fold_logits"] < losses["factor_mean"]
    assert rows["delta_mean"]["difference"] == ""
    assert float(rows["factor_mean"]["difference_low"]) > 0
    labels = read_labels(toy.fold)
    scores = Logits(toy.ids, toy.split, students[1][1], {})
    fit, _ = calibrate_judge(scores, labels, VIEWS, "vector")
    test = toy.split == "test"
    probs = symmetrise(fit.apply(students[1][1][test]), VIEWS)
    own = probs[np.arange(test.sum()), toy.label[test]]
    assert losses["best_fold"] == pytest.approx(-np.log(own).mean(), abs=1e-6)
    assert len(text.read_text().splitlines()) == 2 + len(rows)


def test_passes_are_mixed_row_by_row():
    rng = np.random.default_rng(0)
    first, full = rng.dirichlet([1, 1, 1], 50), rng.dirichlet([1, 1, 1], 50)
    mixed, share = mix_passes(first, full, 0.8)
    n_second = 0
    for row in range(50):
        second = -(first[row] * np.log(first[row])).sum() >= 0.8
        n_second += second
        assert (mixed[row] == (full if second else first)[row]).all()
    assert 0 < n_second < 50
    assert share == n_second / 50


def test_compare_budgets(toy):
    dear, _ = toy.model("merged", 1, 0.2)
    cheap, logits = toy.model("gptq4", 2, 1.5)
    names = ("tta.csv", "tta.md", "tta.svg")
    table, text, figure = (toy.folder / name for name in names)
    outputs = table, text, figure
    compare_budgets(toy.fold, (dear, cheap), *outputs, VIEWS, "vector", EVALUATION)
    with open(table, newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["curve"] for row in rows] == ["second_view"] * 5 + ["cascade"] * 5
    for points, n_views in ((rows[:5], 1), (rows[5:], 2)):
        assert [float(row["share"]) for row in points] == [0, 0.25, 0.5, 0.75, 1]
        losses = [float(row["log_loss"]) for row in points]
        assert losses[-1] < losses[2] < losses[0]
        for row, loss in zip(points, losses, strict=True):
            share, reached = float(row["share"]), float(row["test_share"])
            assert reached == pytest.approx(share, abs=0.15)
            assert float(row["passes"]) == pytest.approx(n_views * (1 + reached))
            if share > 0:
                gain = float(row["from_none"])
                assert gain == pytest.approx(loss - losses[0], abs=2e-6)
        assert (points[0]["from_none"], points[-1]["from_all"]) == ("", "")
        assert float(points[-1]["from_none_high"]) < 0
    # The first point is the first view alone, with a scaling of its own.
    labels, scores = (
        read_labels(toy.fold),
        Logits(toy.ids, toy.split, logits[:, :1], {}),
    )
    fit, _ = calibrate_judge(scores, labels, ["AB"], "vector")
    test = toy.split == "test"
    probs = softmax(fit.apply(logits[test, 0]), axis=1)
    own = probs[np.arange(test.sum()), toy.label[test]]
    assert float(rows[0]["log_loss"]) == pytest.approx(-np.log(own).mean(), abs=1e-6)
    assert "second view" in figure.read_text()
    assert len(text.read_text().splitlines()) == 12
    with pytest.raises(UserError, match=r"predict\.views: \[AB, BA\]"):
        compare_budgets(toy.fold, (dear, cheap), *outputs, ["AB"], "vector", {})


def test_only_the_weighed_ensemble_needs_predictions():
    config = {
        "predict": {"views": VIEWS},
        "ensemble": {"advantage": {"baseline": "trees", "temperature": 0.1}},
        "teachers": {"llama": {}},
        "distillation": DISTILLATION | {"ema": {"decay": 0.9, "use": False}},
    }
    ensembles = Ensembles(config | {"folds": {"n": 3}})
    assert set(Ensembles(config | {"folds": {"n": 2}}).arms) == {
        *("delta_mean", "factor_mean", "advantage"),
    }
    assert ensembles.folds(SimpleNamespace(ensemble="without_fold1")) == [0, 2]
    for name in ensembles.arms:
        job = SimpleNamespace(ensemble=name)
        needed = [
            *ensembles.students(job),
            *ensembles.fold_files(job),
            *ensembles.baselines(job),
        ]
        assert len(needed) == (10 if name == "advantage" else 0)
        assert len(ensembles.adapters(job)) == len(ensembles.folds(job))
    assert ensembles.students(SimpleNamespace(ensemble="advantage"))[1:3] == [
        "results/predictions/fold0_bf16/BA.parquet",
        "results/predictions/fold1_bf16/AB.parquet",
    ]
    config["distillation"]["labels"] = "out_of_fold"  # dev is no longer clean
    job = SimpleNamespace(ensemble="advantage")
    without = Ensembles(config | {"folds": {"n": 3}})
    assert without.baselines(job) == []
    assert without.advantage(job) == {"baseline": "none", "temperature": 0.1}
    config["ensemble"]["advantage"]["baseline"] = "ema"
    means = Ensembles(config | {"folds": {"n": 3}}).baselines(job)
    assert means[1] == "results/predictions/fold0_ema/BA.parquet"
    assert len(means) == 6
