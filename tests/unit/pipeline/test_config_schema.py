"""The configuration: shipped files are valid, mistakes get one clear line."""

import copy
import re
import runpy
from pathlib import Path

import pytest
import yaml
from configurations import ROOT, SCHEMA, overlaid, shipped
from wrong_configs import KEYS, VALUES

from prefdistill.errors import UserError
from prefdistill.pipeline.config_schema import GONE, read_typed, validate_config

DEMO = shipped("demo")
CASES = VALUES | KEYS


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_refused_in_its_one_line(name, refusal):
    overlay, line = CASES[name]
    assert refusal(overlay) == line


@pytest.mark.parametrize("name", ["config", "plan", "small", "demo"])
def test_shipped_configurations_are_valid(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = shipped(name)
    for entries in config["data"].values():
        for path in [entries] if isinstance(entries, str) else entries or []:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text("id,prompt\n" + "1,p\n" * 9)
    assert validate_config(config, SCHEMA)["folds"]["n"] == 3


def test_defaults_are_filled_at_every_depth():
    filled = validate_config(DEMO, SCHEMA)
    llama = filled["teachers"]["llama"]
    assert llama["lora"]["targets"] == ["all-linear"]
    assert llama["training"]["schedule"] == "cosine"
    assert llama["post_pretrain"]["objective"] == "classification"
    assert filled["check"]["pairs"][0]["prompt"]
    assert filled["base_models"]["tiny_llama"]["pretrain_steps"] > 0


def test_the_given_configuration_is_left_alone():
    given = copy.deepcopy(DEMO)
    validate_config(given, SCHEMA)
    assert given == DEMO


def test_empty_sources_may_be_null():
    config = copy.deepcopy(DEMO)
    config["data"].update(extra=None, ultra=None, test=[])
    data = validate_config(config, SCHEMA)["data"]
    assert (data["extra"], data["ultra"], data["test"]) == ([], [], None)


def test_a_bare_off_of_yaml_is_understood():
    config = copy.deepcopy(DEMO)
    config["distillation"]["teacher_gate"] = yaml.safe_load("off")
    assert validate_config(config, SCHEMA)["distillation"]["teacher_gate"] == "off"


def test_the_reference_is_generated_from_the_schema():
    render = runpy.run_path(str(ROOT / "docs/write_config_reference.py"))["render"]
    assert (ROOT / "config/README.md").read_text(encoding="utf-8") == render()


def test_every_key_has_a_description():
    rows = runpy.run_path(str(ROOT / "docs/write_config_reference.py"))["rows"]
    nameless = [
        key
        for key, kind, _, text in rows(SCHEMA, SCHEMA)
        if not text and not key.endswith("<name>")
    ]
    assert not nameless


@pytest.mark.parametrize("path", GONE)
def test_a_key_that_is_gone_is_named_with_its_date(path):
    section, key = path.split(".")
    schema, config = copy.deepcopy(SCHEMA), copy.deepcopy(DEMO)
    schema["properties"][section]["properties"].pop(key, None)
    config.setdefault(section, {}).update({key: 1, "aaa": 1, "zzz": 1})
    config["aaa"] = {}
    since = re.escape(f"config: {path}: gone since ") + r"[A-Z][a-z]+ \d{4} \("
    with pytest.raises(UserError, match=rf"^{since}.*\); remove the key$"):
        validate_config(config, schema)
    config[section].pop(key)
    with pytest.raises(UserError, match="unknown key 'aaa'"):
        validate_config(config, schema)


def test_null_in_an_overlay_takes_a_key_away():
    config = copy.deepcopy(DEMO)
    config["teachers"]["qwen"] = None
    config["calibration"] = {"method": None}
    filled = validate_config(config, SCHEMA)
    assert list(filled["teachers"]) == ["llama"]
    assert filled["calibration"]["method"] == "vector"


def test_the_order_of_keys_does_not_matter():
    def backwards(value):
        if not isinstance(value, dict):
            return value
        return {key: backwards(each) for key, each in reversed(value.items())}

    turned = {key: backwards(each) for key, each in DEMO.items()}
    turned["teachers"] = {k: backwards(DEMO["teachers"][k]) for k in DEMO["teachers"]}
    settings = validate_config(DEMO, SCHEMA)["student"]
    assert repr(validate_config(turned, SCHEMA)["student"]) == repr(settings)


# What `--config` gives, as Snakemake hands it over: all inner values are texts.
GIVEN = {
    "student={training: {learning_rate: 0.001, max_steps: 10}}": {
        "student": {"training": {"learning_rate": 0.001, "max_steps": 10}}
    },
    "student={training: {learning_rate: 1e-3, max_steps: null}}": {
        "student": {"training": {"learning_rate": 0.001, "max_steps": None}}
    },
    "student={training: {max_steps: }}": {"student": {"training": {"max_steps": None}}},
    "quantisation={bits: [4], group_size: 16}": {
        "quantisation": {"bits": [4], "group_size": 16}
    },
    "predict={folds: [0, 1]}": {"predict": {"folds": [0, 1]}},
    "predict={folds: best}": {"predict": {"folds": "best"}},
    "data={test: null}": {"data": {"test": None}},
    "distillation={teacher_gate: false}": {"distillation": {"teacher_gate": False}},
    "distillation={teacher_gate: warn}": {"distillation": {"teacher_gate": "warn"}},
    "evaluation={labels_only: True}": {"evaluation": {"labels_only": True}},
    "teachers={llama: {lora: {r: 8, targets: [q_proj]}}}": {
        "teachers": {"llama": {"lora": {"r": 8, "targets": ["q_proj"]}}}
    },
    "max_runtime=null": {"max_runtime": None},
    "scratch=0123": {"scratch": "0123"},
    "folds={n: many}": {"folds": {"n": "many"}},
}


@pytest.mark.parametrize("entry", GIVEN)
def test_values_of_the_command_line_have_the_schemas_types(entry):
    key, _, value = entry.partition("=")
    given = {key: yaml.load(value, yaml.BaseLoader)}
    merged = overlaid(DEMO, given)
    assert read_typed(merged, given, SCHEMA, SCHEMA) == overlaid(DEMO, GIVEN[entry])


def test_texts_of_files_stay_texts():
    config = overlaid(DEMO, {"student": {"training": {"learning_rate": "1e-4"}}})
    assert read_typed(config, {"scratch": "x"}, SCHEMA, SCHEMA) == config
    with pytest.raises(UserError, match=r"YAML reads this as text; write 0\.0001"):
        validate_config(config, SCHEMA)


def test_a_whole_number_with_a_point_is_no_integer():
    with pytest.raises(UserError, match=r"folds\.n: 3\.0 is .* of type integer"):
        validate_config(overlaid(DEMO, {"folds": {"n": 3.0}}), SCHEMA)
