"""What an arm changes: sections at any depth, and nothing else."""

import pytest
from configurations import configured

from prefdistill.pipeline.ablations import with_changes


def test_changes_reach_any_depth_and_leave_the_settings_alone():
    settings = configured("demo").distillation
    changes = {"labels": "out_of_fold", "ema": {"decay": 0.8}}
    changed = with_changes(settings, changes)
    assert (changed.labels, changed.ema.decay) == ("out_of_fold", 0.8)
    assert (settings.labels, settings.ema.decay) == ("in_fold", 0)
    assert with_changes(changed, {"labels": "in_fold", "ema": {"decay": 0}}) == settings


def test_a_setting_that_is_not_there_is_refused():
    with pytest.raises(AttributeError, match="emma"):
        with_changes(configured("demo").distillation, {"emma": {"decay": 0.8}})
    with pytest.raises(TypeError, match="lable"):
        with_changes(configured("demo").distillation, {"lable": "in_fold"})
