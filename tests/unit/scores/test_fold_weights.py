import math

import numpy as np
import pytest

from prefdistill.errors import UserError
from prefdistill.scores.fold_weights import (
    advantage_weights,
    advantages,
    best_fold,
    fold_reward,
    normalise_weights,
)
from prefdistill.scores.metrics import Labels
from prefdistill.storage.logits import Logits

META = {"views": ["AB", "BA"]}


def test_weights_are_normalised():
    assert normalise_weights("equal", 4).tolist() == [0.25] * 4
    assert normalise_weights([1, 3], 2).tolist() == [0.25, 0.75]


@pytest.mark.parametrize("given", [[1, 1], [1, 0, 1], [1, -1, 1], [1, float("nan"), 1]])
def test_unusable_weights_are_refused(given):
    with pytest.raises(UserError, match=r"ensemble\.fold_weights"):
        normalise_weights(given, 3)


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


def slow_weights(rewards, temperature):
    """Compare each fold with the mean of the others, one at a time."""
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


def test_a_split_without_labels_is_one_line():
    ids = np.array(["a", "b"])
    split = np.array(["dev", "dev"])
    scores = Logits(ids, split, np.zeros((2, 2, 3), np.float32), META)
    known = Labels(ids, split, np.array([0, 1]), ids, split)
    with pytest.raises(UserError, match="no labelled rows to weigh"):
        fold_reward(scores, known, "select")
