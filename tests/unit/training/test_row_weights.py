"""Weights of rows, each against the formula done a row at a time."""

import math

import numpy as np
import pytest

from prefdistill.settings import SampleWeightSettings
from prefdistill.storage.logits import Logits
from prefdistill.training.row_weights import gain_weights, unseen_probs

META = {"views": ["AB", "BA"]}
IDS = ["a", "b", "c", "extra"]
SPLITS = [["dev", "train", "train", "train"], ["train", "dev", "train", "train"]]


@pytest.fixture
def unseen():
    """Two teachers' logits of two folds; the second one has not scored row b."""
    rng = np.random.default_rng(0)
    teachers = []
    for n_rows in (4, 1):
        scored = []
        for split in SPLITS:
            logits = rng.normal(size=(4, 2, 3)).astype(np.float32)
            scores = Logits(np.array(IDS), np.array(split), logits, META)
            scored.append((scores.select(np.arange(n_rows)), logits))
        teachers.append(scored)
    return teachers


def plain_probs(logits):
    """Of one row: both orders' softmax, the second swapped back, averaged."""
    first, second = ([math.exp(z) for z in row] for row in logits.tolist())
    first = [p / sum(first) for p in first]
    second = [p / sum(second) for p in second]
    return [(p + second[k]) / 2 for p, k in zip(first, (1, 0, 2), strict=True)]


def test_rows_are_judged_by_the_teachers_that_left_them_out(unseen):
    ids = np.array(["b", "extra", "a", "elsewhere"])
    scores = [scored for teacher in unseen for scored, _ in teacher]
    probs, known = unseen_probs(ids, scores)
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
    weights = gain_weights(gain, SampleWeightSettings(beta=beta, low=0.3, high=2.0))
    assert weights == pytest.approx([50 * w / sum(plain) for w in plain])
    assert weights.mean() == pytest.approx(1)
    hardest, clearest = gain.argmin(), gain.argmax()
    assert (weights[clearest] > weights[hardest]) == (beta > 0)


@pytest.mark.parametrize("gain", [np.zeros(0), np.full(4, 0.3)])
def test_rows_that_gain_alike_weigh_alike(gain):
    settings = SampleWeightSettings(beta=1.0, low=0.1, high=9.0)
    assert (gain_weights(gain, settings) == 1).all()


def test_without_beta_weights_are_exactly_one():
    gain = np.random.default_rng(2).normal(size=9)
    settings = SampleWeightSettings(beta=0.0, low=0.25, high=4.0)
    assert (gain_weights(gain, settings) == 1).all()
