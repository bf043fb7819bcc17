from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

from prefdistill.classes import swap_classes
from prefdistill.errors import UserError
from prefdistill.scores.views import (
    as_answers,
    average_logits,
    pool_opinions,
    symmetrise,
)
from prefdistill.storage.logits import Logits

VIEWS = ["AB", "BA"]
META = {"views": VIEWS}


def scores(n=6, seed=0, split="test"):
    rng = np.random.default_rng(seed)
    ids = np.array([f"train:{i}" for i in range(n)])
    split = np.array([split] * n)
    return Logits(ids, split, rng.normal(size=(n, 2, 3)).astype(np.float32), META)


def test_symmetrise_by_hand():
    logits = scores(1).logits
    first, second = softmax(logits[0].astype(float), axis=1)
    expected = (first + second[[1, 0, 2]]) / 2
    assert symmetrise(logits, VIEWS)[0] == pytest.approx(expected)
    assert symmetrise(logits[:, [1]], ["BA"])[0] == pytest.approx(second[[1, 0, 2]])


def test_symmetrise_does_not_depend_on_the_order_of_the_pair():
    logits = scores().logits
    exchanged = logits[:, ::-1]  # the same pairs with A and B exchanged
    assert symmetrise(exchanged, VIEWS) == pytest.approx(
        swap_classes(symmetrise(logits, VIEWS))
    )


def test_as_answers_turns_only_the_swapped_view():
    logits = scores().logits
    turned = as_answers(logits, VIEWS)
    assert (turned[:, 0] == logits[:, 0]).all()
    assert (turned[:, 1] == logits[:, 1][:, [1, 0, 2]]).all()


def test_average_logits_joins_by_id_and_leaves_dev_out():
    first, second = scores(seed=1), scores(seed=2)
    first.split[0] = second.split[1] = "dev"
    with pytest.raises(UserError, match="train:"):
        average_logits([first, second], [1, 1])
    second.split[1] = "test"
    own = scores(seed=2).select(np.array([4, 2, 3, 1, 5]))
    mean = average_logits([first, own], [1, 3])
    assert mean.ids.tolist() == [f"train:{i}" for i in range(1, 6)]
    expected = (first.logits[1:] + 3 * second.logits[1:]) / 4
    assert mean.logits == pytest.approx(expected, abs=1e-6)
    turned = replace(own, meta={"views": VIEWS[::-1]})
    with pytest.raises(UserError, match="need the same views in the same order"):
        average_logits([first, turned], [1, 1])


def test_an_average_keeps_what_its_models_share_of_their_provenance():
    models = [
        replace(scores(seed=seed), meta=META | {"text": "t", "adapter": str(seed)})
        for seed in (1, 2)
    ]
    assert average_logits(models, [1, 1]).meta == META | {"text": "t"}
    assert average_logits(models[:1], [1]).meta == models[0].meta


def test_opinions_are_pooled_by_hand():
    probs, others = np.array([[0.5, 0.3, 0.2]]), np.array([[0.2, 0.2, 0.6]])
    assert pool_opinions(probs, others, 0.0) == pytest.approx(probs)
    odds = np.sqrt([[0.5 * 0.2, 0.3 * 0.2, 0.2 * 0.6]])
    assert pool_opinions(probs, others, 0.5) == pytest.approx(odds / odds.sum())
    sure = pool_opinions(np.array([[1.0, 0.0, 0.0]]), others, 0.3)
    assert np.isfinite(sure).all()
    assert sure.sum() == pytest.approx(1)
