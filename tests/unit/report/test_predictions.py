import numpy as np
import pytest
from toy_stages import N_FOLDS

from prefdistill.errors import UserError
from prefdistill.report.predictions import (
    PREDICTIONS_SCHEMA,
    Predictions,
    from_baselines,
    predictions_table,
    read_predictions_table,
    trees_probabilities,
)
from prefdistill.scores.metrics import Labels
from prefdistill.storage.tables import read_table, write_table


@pytest.fixture
def two_views():
    """Make predictions of three rows in both views."""
    ids = np.array(["a", "b", "c"])
    rng = np.random.default_rng(0)
    probs = {view: rng.dirichlet([1, 1, 1], 3) for view in ("AB", "BA")}
    return Predictions("student", "student", 0, "test", ids, probs)


def test_rows_are_found_by_id(two_views):
    probs = two_views.probs_of(np.array(["c", "a"]))
    mean = (two_views.probs["AB"] + two_views.probs["BA"]) / 2
    assert probs == pytest.approx(mean[[2, 0]])
    with pytest.raises(UserError, match="student has no prediction of row id d"):
        two_views.probs_of(np.array(["a", "d"]))


def test_the_average_of_both_views_follows_them(two_views):
    names, probs, agreements = zip(*two_views.by_views(), strict=True)
    assert names == ("AB", "BA", "AB+BA")
    assert probs[2] == pytest.approx((probs[0] + probs[1]) / 2)
    same = probs[0].argmax(axis=1) == probs[1].argmax(axis=1)
    assert agreements == (None, None, same.mean())


def test_the_table_gives_back_the_predictions(two_views, tmp_path):
    ids = np.array(["c", "d"])
    both = {"AB+BA": np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])}
    wrote = [
        two_views,
        Predictions("student", "student", 1, "test", two_views.ids, two_views.probs),
        Predictions("student", "student", 1, "dev", ids, both),
        Predictions("final", "merged", None, "test", two_views.ids, two_views.probs),
    ]
    every = np.array(["a", "b", "c", "d"])
    labels = Labels(
        every, np.full(4, "test"), np.array([0, 1, 2, 2]), every, np.full(4, "train")
    )
    table = predictions_table(wrote, labels)
    write_table(tmp_path / "p.parquet", table, PREDICTIONS_SCHEMA)
    found, known = read_predictions_table(tmp_path / "p.parquet")
    assert len(found) == len(wrote)
    for one, other in zip(wrote, found, strict=True):
        assert (one.stage, one.model, one.fold, one.split) == (
            other.stage, other.model, other.fold, other.split,
        )  # fmt: skip
        assert one.ids.tolist() == other.ids.tolist()
        assert list(one.probs) == list(other.probs)
        for view, probs in one.probs.items():
            assert np.array_equal(probs, other.probs[view])
    own = labels.of(known.ids)
    assert np.array_equal(own.label, known.label)
    assert own.group.tolist() == known.group.tolist()


def test_a_table_of_every_stage_is_read_as_it_was_written(toy):
    path = toy.path("results/report/predictions.parquet")
    found, labels = read_predictions_table(path)
    assert predictions_table(found, labels).equals(read_table(path))


def test_trees_predict_the_common_rows_by_one_model(toy):
    path = toy.path("baselines.parquet")
    ids = toy.ids[toy.common == "test"][::-1]
    (own,) = [
        one
        for one in from_baselines(path, ["test"])
        if (one.stage, one.fold) == ("trees", None)
    ]
    assert trees_probabilities(path, ids) == pytest.approx(own.probs_of(ids))
    folds = {one.fold for one in from_baselines(path, ["dev"])}
    assert folds == set(range(N_FOLDS))
    with pytest.raises(UserError, match="the trees lack row id"):
        trees_probabilities(path, toy.ids[toy.common == "dev"])
