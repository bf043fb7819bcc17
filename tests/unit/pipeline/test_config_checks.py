"""Settings that contradict each other, or the disk, are refused in one line."""

import pytest
from configurations import configured
from wrong_configs import SETTINGS

from prefdistill.errors import UserError


@pytest.mark.parametrize("name", SETTINGS)
def test_a_mistake_is_refused_in_its_one_line(name, refusal):
    overlay, line = SETTINGS[name]
    assert refusal(overlay) == line


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
