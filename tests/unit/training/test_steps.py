"""The steps of a training: their number, pairs and learning rates."""

import numpy as np
import pytest
from two_processes import settings_of

from prefdistill.training.steps import Plan


def test_plan_steps_and_warmup():
    plan = Plan.from_settings(settings_of(), 100, 0.5)
    assert (plan.n_steps, plan.n_warmup, plan.pairs_per_step) == (12, 2, 4)
    assert Plan.from_settings(settings_of(), 100, 0.001).n_steps == 1
    assert Plan.from_settings(settings_of(max_steps=5), 100, 1).n_steps == 5
    assert Plan.from_settings(settings_of(warmup_steps=9), 100, 1).n_warmup == 9
    assert Plan.from_settings(settings_of(), 3, 2).pairs_per_step == 3


def test_every_epoch_sees_every_pair_once():
    plan = Plan.from_settings(settings_of(), 10, 4)
    assert plan.n_steps == 10
    seen = np.concatenate([plan.pairs(step) for step in range(10)]).reshape(4, 10)
    assert (np.sort(seen, axis=1) == np.arange(10)).all()
    assert not (seen[0] == seen[1]).all()
    other = Plan.from_settings(settings_of(seed=8), 10, 4)
    assert not (other.pairs(0) == plan.pairs(0)).all()


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [("constant", 1, 1), ("linear", 0.55, 0.1), ("cosine", 0.55, 0.1)],
)
def test_learning_rate(schedule, middle, end):
    settings = settings_of(schedule=schedule, learning_rate=1.0)
    plan = Plan(100, 4, 110, 10, 0)
    rates = [plan.learning_rate(step, settings) for step in range(111)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates[10] == 1
    assert rates[60] == pytest.approx(middle)
    assert rates[110] == pytest.approx(end)


def test_a_step_across_two_epochs_has_the_rest_of_one_and_the_start_of_the_next():
    plan = Plan.from_settings(settings_of(), 6, 2)  # of four pairs
    first, second, third = (plan.pairs(step) for step in range(3))
    assert sorted([*first, *second[:2]]) == list(range(6))
    assert sorted([*second[2:], *third]) == list(range(6))
    assert second.dtype == np.int64
    assert (plan.pairs(1) == second).all()  # a resumed run asks again


def test_without_warm_up_the_first_step_has_the_peak():
    settings = settings_of(learning_rate=0.5, warmup_steps=0, schedule="linear")
    plan = Plan.from_settings(settings, 100, 1)
    assert plan.learning_rate(0, settings) == 0.5
    rates = [plan.learning_rate(step, settings) for step in range(plan.n_steps)]
    assert rates == sorted(rates, reverse=True)


def test_warm_up_may_last_the_whole_training():
    settings = settings_of(learning_rate=1.0, warmup_steps=5, schedule="cosine")
    plan = Plan(100, 4, 5, 5, 0)
    assert plan.learning_rate(4, settings) == 1
    assert plan.learning_rate(5, settings) == 1
