"""Base models that cannot be used are refused in one line; a right one is accepted."""

import pytest
from configurations import configured
from wrong_configs import BASE_MODELS


@pytest.mark.parametrize("name", BASE_MODELS)
def test_a_mistake_is_refused_in_its_one_line(name, refusal):
    overlay, line = BASE_MODELS[name]
    assert refusal(overlay) == line


def test_a_local_model_of_the_right_kind_is_accepted(world, monkeypatch):
    monkeypatch.chdir(world)
    overlay = {"base_models": {"x": {"source": "path", "path": "model"}}}
    settings = configured("demo", **overlay, student={"base": "x"})
    assert settings.student.base == "x"
