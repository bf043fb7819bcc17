"""Settings that contradict each other, or the disk, are refused in one line."""

from dataclasses import fields

import pytest
from configurations import configured
from wrong_configs import SETTINGS

from prefdistill.errors import UserError
from prefdistill.settings import LossWeights


@pytest.mark.parametrize("name", SETTINGS)
def test_a_mistake_is_refused_in_its_one_line(name, refusal):
    overlay, line = SETTINGS[name]
    assert refusal(overlay) == line


@pytest.mark.parametrize("term", [item.name for item in fields(LossWeights)])
def test_one_term_of_the_loss_is_enough(term):
    weights = {item.name: 0.0 for item in fields(LossWeights)} | {term: 0.5}
    found = configured("demo", distillation={"weights": weights}).distillation.weights
    assert found == LossWeights(**weights)


def test_rewards_on_dev_need_labels_that_leave_dev_alone():
    changes = {"ensemble": {"fold_weights": "advantage"}}
    assert configured("demo", **changes).ensemble.advantage.temperature > 0
    changes["distillation"] = {"labels": "out_of_fold"}
    with pytest.raises(UserError, match=r"advantage\.baseline: 'trees' .* use 'ema'"):
        configured("demo", **changes)
    changes["ensemble"]["advantage"] = {"baseline": "none"}
    configured("demo", **changes)


@pytest.mark.parametrize("mean", [{}, {"decay": 0.9, "use": True}])
def test_rewards_against_a_running_mean_need_it_beside_the_last_weights(mean):
    advantage = {"baseline": "ema"}
    ensemble = {"fold_weights": "advantage", "advantage": advantage}
    with pytest.raises(UserError, match=r"baseline: 'ema' needs the running mean"):
        configured("demo", ensemble=ensemble, distillation={"ema": mean})
    configured("demo", ensemble=ensemble, distillation={"ema": {"decay": 0.9}})
