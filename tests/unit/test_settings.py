"""Settings as classes: the schema's keys, nested, frozen, and nothing unknown."""

import copy
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from prefdistill.pipeline.validation import fill_defaults
from prefdistill.settings import (
    RUN_TIME_KEYS,
    DistillationSettings,
    InferenceSettings,
    LoraSettings,
    PostPretrainSettings,
    TextSettings,
    TrainingSettings,
    read,
    result_settings,
)

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
SECTIONS = {
    TextSettings: SCHEMA["properties"]["text"],
    DistillationSettings: SCHEMA["properties"]["distillation"],
    LoraSettings: SCHEMA["$defs"]["lora"],
    TrainingSettings: SCHEMA["$defs"]["training"],
    PostPretrainSettings: SCHEMA["$defs"]["post_pretrain"],
    InferenceSettings: SCHEMA["$defs"]["inference"],
}


def defaults(kind):
    return fill_defaults({}, SECTIONS[kind], SCHEMA)


def check_names(kind, section):
    assert {field.name for field in fields(kind)} == set(section["properties"])
    for name, inner in get_type_hints(kind).items():
        if is_dataclass(inner):
            check_names(inner, section["properties"][name])


@pytest.mark.parametrize("kind", SECTIONS)
def test_the_fields_are_the_keys_of_the_schema(kind):
    check_names(kind, SECTIONS[kind])


@pytest.mark.parametrize("kind", SECTIONS)
def test_the_values_are_those_of_the_configuration(kind):
    given = defaults(kind)
    plain = result_settings(read(kind, copy.deepcopy(given)))
    as_lists = {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}
    assert as_lists == result_settings(given)
    assert not RUN_TIME_KEYS & plain.keys()


def test_nested_sections_are_classes_and_frozen():
    settings = read(DistillationSettings, defaults(DistillationSettings))
    assert settings.weights.kl == 1.0
    assert read(LoraSettings, defaults(LoraSettings)).targets[0] == "q_proj"
    with pytest.raises(FrozenInstanceError):
        settings.ema.decay = 0.9


def test_unknown_and_missing_keys_are_refused():
    given = defaults(DistillationSettings)
    with pytest.raises(ValueError, match=r"Distillation.*: the key 'x' is unknown"):
        read(DistillationSettings, given | {"x": 1})
    given["ema"].pop("use")
    with pytest.raises(ValueError, match="EmaSettings: the key 'use' is missing"):
        read(DistillationSettings, given)


@pytest.mark.parametrize(
    ("changes", "clean"),
    [
        ({}, True),
        ({"labels": "out_of_fold"}, False),
        ({"sample_weights": {"beta": -0.5, "low": 0.25, "high": 4.0}}, False),
    ],
)
def test_teachers_that_saw_the_dev_rows_make_them_unclean(changes, clean):
    settings = read(DistillationSettings, defaults(DistillationSettings) | changes)
    assert settings.keeps_dev_clean(["llama"]) == clean
    assert settings.keeps_dev_clean([])
