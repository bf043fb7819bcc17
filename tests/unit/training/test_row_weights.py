"""Weights and softer targets, each against the formula done a row at a time."""

import math

import numpy as np
import pytest

from prefdistill.storage.tables import Logits, write_logits
from prefdistill.training.row_weights import gain_weights, soften, unseen_probs

META = {"views": ["AB", "BA"]}
IDS = ["a", "b", "c", "extra"]
SPLITS = [["dev", "train", "train", "train"], ["train", "dev", "train", "train"]]


@pytest.fixture
def unseen(tmp_path):
    """Two teachers' logits of two folds; the second one has not scored row b."""
    rng = np.random.default_rng(0)
    teachers = []
    for name, n_rows in (("one", 4), ("two", 1)):
        paths = []
        for fold, split in enumerate(SPLITS):
            logits = rng.normal(size=(4, 2, 3)).astype(np.float32)
            scores = Logits(np.array(IDS), np.array(split), logits, META)
            path = tmp_path / f"{name}{fold}.npz"
            write_logits(path, scores.select(np.arange(n_rows)))
            paths.append((path, logits))
        teachers.append(paths)
    return teachers


def plain_probs(logits):
    """Of one row: both orders' softmax, the second swapped back, averaged."""
    first, second = ([math.exp(z) for z in row] for row in logits.tolist())
    first = [p / sum(first) for p in first]
    second = [p / sum(second) for p in second]
    return [(p + second[k]) / 2 for p, k in zip(first, (1, 0, 2), strict=True)]


def test_rows_are_judged_by_the_teachers_that_left_them_out(unseen):
    ids = np.array(["b", "extra", "a", "elsewhere"])
    paths = [[path for path, _ in teacher] for teacher in unseen]
    probs, known = unseen_probs(ids, paths)
    assert known.tolist() == [True, False, True, False]
    (_, one_0), (_, one_1) = unseen[0]
    (_, two_0), _ = unseen[1]
    assert probs[0] == pytest.approx(plain_probs(one_1[1]))
    both = np.mean([plain_probs(one_0[0]), plain_probs(two_0[0])], axis=0)
    assert probs[2] == pytest.approx(both)
    assert (probs[~known] == 0).all()


@pytest.mark.parametrize("beta", [-0.7, 0.4, 3.0])
def test_weights_are_the_formula(beta):
    gain = np.random.default_rng(1).normal(0.2, 0.5, 50)
    mean = sum(gain) / 50
    sd = math.sqrt(sum((g - mean) ** 2 for g in gain) / 50)
    plain = [min(max(1 + beta * (g - mean) / sd, 0.3), 2.0) for g in gain]
    weights = gain_weights(gain, beta=beta, low=0.3, high=2.0)
    assert weights == pytest.approx([50 * w / sum(plain) for w in plain])
    assert weights.mean() == pytest.approx(1)
    hardest, clearest = gain.argmin(), gain.argmax()
    assert (weights[clearest] > weights[hardest]) == (beta > 0)


@pytest.mark.parametrize("gain", [np.zeros(0), np.full(4, 0.3)])
def test_rows_that_gain_alike_weigh_alike(gain):
    assert (gain_weights(gain, beta=1.0, low=0.1, high=9.0) == 1).all()


def test_without_beta_weights_are_exactly_one():
    gain = np.random.default_rng(2).normal(size=9)
    assert (gain_weights(gain, beta=0.0, low=0.25, high=4.0) == 1).all()


def test_only_confident_contradictions_are_softened():
    targets = np.eye(3, dtype=np.float32)[[0, 0, 0, 2]]
    probs = np.array(
        [[0.1, 0.85, 0.05], [0.2, 0.7, 0.1], [0.9, 0.05, 0.05], [0.8, 0.1, 0.1]]
    )
    soft, moved = soften(targets, probs, {"threshold": 0.8, "share": 0.25})
    assert moved.tolist() == [True, False, False, True]
    assert soft.dtype == np.float32
    assert soft[0] == pytest.approx([0.75 + 0.025, 0.25 * 0.85, 0.25 * 0.05])
    assert soft[3] == pytest.approx([0.2, 0.025, 0.775])
    assert (soft[1:3] == targets[1:3]).all()
    assert soft.sum(axis=1) == pytest.approx(np.ones(4))


def test_a_share_of_zero_leaves_the_targets_alone():
    targets = np.eye(3, dtype=np.float32)[[0, 1]]
    probs = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    soft, _ = soften(targets, probs, {"threshold": 0.5, "share": 0.0})
    assert (soft == targets).all()
