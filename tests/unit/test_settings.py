"""Settings as classes: the schema's keys, nested, frozen, and nothing unknown."""

import copy
from dataclasses import FrozenInstanceError, asdict, dataclass, fields, is_dataclass
from typing import get_args, get_type_hints

import pytest
from configurations import SCHEMA, configured, shipped

from prefdistill.pipeline.config_schema import fill_defaults, validate_config
from prefdistill.settings import (
    RUN_TIME_KEYS,
    AdvantageSettings,
    DistillationSettings,
    EvaluationSettings,
    HubData,
    InferenceSettings,
    LoraSettings,
    LossWeights,
    PostPretrainSettings,
    ScalingSettings,
    Settings,
    TextSettings,
    TrainingSettings,
    read,
    result_settings,
)

SECTIONS = {
    TextSettings: SCHEMA["properties"]["text"],
    DistillationSettings: SCHEMA["properties"]["distillation"],
    AdvantageSettings: SCHEMA["properties"]["ensemble"]["properties"]["advantage"],
    EvaluationSettings: SCHEMA["properties"]["evaluation"],
    LoraSettings: SCHEMA["$defs"]["lora"],
    TrainingSettings: SCHEMA["$defs"]["training"],
    PostPretrainSettings: SCHEMA["$defs"]["post_pretrain"],
    InferenceSettings: SCHEMA["$defs"]["inference"],
}


def defaults(kind):
    return fill_defaults({}, SECTIONS[kind], SCHEMA)


def classes_in(kind):
    """Yield the settings classes that a field's type names."""
    if is_dataclass(kind):
        yield kind
    for inner in get_args(kind):
        yield from classes_in(inner)


def sections_in(schema):
    """Yield the parts of a key's schema that have keys of their own."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    if "properties" in schema:
        yield schema
        return
    more = [schema.get("items"), schema.get("additionalProperties")]
    for inner in [*more, *schema.get("anyOf", [])]:
        if isinstance(inner, dict):
            yield from sections_in(inner)


def check_names(kind, section):
    # In one order, as params made of either are compared as text.
    assert [field.name for field in fields(kind)] == list(section["properties"])
    for name, inner in get_type_hints(kind).items():
        parts = list(sections_in(section["properties"][name]))
        assert len(parts) == len(list(classes_in(inner))), name
        for part, each in zip(parts, classes_in(inner), strict=True):
            check_names(each, part)


def test_the_fields_are_the_keys_of_the_schema_at_every_depth():
    check_names(Settings, SCHEMA)


def plain(value):
    """Return a value as YAML has it, without keys that are null."""
    if isinstance(value, dict):
        return {k: plain(each) for k, each in value.items() if each is not None}
    return [plain(each) for each in value] if isinstance(value, tuple | list) else value


def test_the_whole_configuration_is_read():
    config = validate_config(shipped("demo"), SCHEMA)
    assert plain(asdict(read(Settings, config))) == plain(config)


def test_data_entries_are_files_or_data_sets_of_the_hub():
    train = ["results/simulated/train.csv", {"hub": "a/b", "columns": {"id": "x"}}]
    demo, mixed = configured("demo").data, configured("demo", data={"train": train})
    assert mixed.data.train[1] == HubData(hub="a/b", columns={"id": "x"})
    names = ("train", "extra", "ultra", "test")
    assert demo.files == [f"results/simulated/{name}.csv" for name in names]
    assert mixed.data.files == demo.files
    assert demo.is_simulated
    assert not mixed.data.is_simulated


def test_the_final_model_is_named_as_its_predictions_are():
    assert configured("demo").predict.final == "gptq4"
    adapters = configured("demo", predict={"model": "adapters", "base": "nf4"})
    assert adapters.predict.final == "adapters_nf4"


@pytest.mark.parametrize("kind", SECTIONS)
def test_the_values_are_those_of_the_configuration(kind):
    given = defaults(kind)
    plain = result_settings(read(kind, copy.deepcopy(given)))
    as_lists = {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}
    assert as_lists == result_settings(given)
    assert not RUN_TIME_KEYS & plain.keys()


def test_the_scaling_of_teachers_is_the_calibration_without_the_judge():
    keys = set(SCHEMA["properties"]["calibration"]["properties"])
    assert {field.name for field in fields(ScalingSettings)} == keys - {"judge"}


def test_nested_sections_are_classes_and_frozen():
    settings = read(DistillationSettings, defaults(DistillationSettings))
    assert settings.weights.kl == 1.0
    assert read(LoraSettings, defaults(LoraSettings)).targets == ("all-linear",)
    with pytest.raises(FrozenInstanceError):
        settings.ema.decay = 0.9


def test_every_weight_but_that_of_the_label_is_per_teacher():
    @dataclass(frozen=True, kw_only=True)
    class MoreWeights(LossWeights):
        another: float

    for kind in (LossWeights, MoreWeights):
        weights = {item.name: 2.0**k for k, item in enumerate(fields(kind))}
        expected = sum(weights.values()) - weights["ce"]
        assert kind(**weights).per_teacher == expected
    settings = read(DistillationSettings, defaults(DistillationSettings))
    assert settings.weights.per_teacher == 2.0


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
