"""The configuration: shipped files are valid, mistakes get one clear line."""

# A table reads best with one case a line.
# ruff: noqa: E501

import copy
import runpy
from pathlib import Path

import pytest
import yaml

from prefdistill.config import validate_config
from prefdistill.job import UserError

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
DEMO = yaml.safe_load((ROOT / "config/demo.yaml").read_text())


def load(name):
    return yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", ["config", "plan", "small", "demo"])
def test_shipped_configurations_are_valid(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load(name)
    for entries in config["data"].values():
        for path in [entries] if isinstance(entries, str) else entries or []:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()
    assert validate_config(config, SCHEMA)["folds"]["n"] == 3


def test_defaults_are_filled_at_every_depth():
    filled = validate_config(DEMO, SCHEMA)
    llama = filled["teachers"]["llama"]
    assert llama["lora"]["targets"][0] == "q_proj"
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


WRONG = {
    "unknown section": (["fold"], 3, "unknown key 'fold' at the top level; did you mean 'folds'"),
    "unknown key": (["student", "precison"], "nf4", "did you mean 'precision'"),
    "unknown training key": (["student", "training", "learnrate"], 1, "at student.training"),
    "too few folds": (["folds", "n"], 1, "folds.n: 1 is not allowed; it must be at least 2"),
    "fractional folds": (["folds", "n"], 2.5, "of type integer"),
    "negative rate": (["student", "training", "learning_rate"], -1, "greater than 0"),
    "rate as text": (["student", "training", "learning_rate"], "1e-4", "of type number"),
    "unknown precision": (["student", "precision"], "int3", "one of auto, bf16"),
    "three bits": (["quantisation", "bits"], [3], "one of 8, 4"),
    "no bits": (["quantisation", "bits"], [], "a list of at least 1"),
    "bits twice": (["quantisation", "bits"], [4, 4], "without repetition"),
    "train as text": (["data", "train"], "train.csv", "of type array"),
    "no train": (["data", "train"], [], "a list of at least 1"),
    "missing file": (["data", "train"], ["nowhere.csv"], "data.train: the file 'nowhere.csv' does not exist"),
    "missing test file": (["data", "test"], "nowhere.csv", "data.test"),
    "hub key": (["data", "extra"], [{"hub": "a/b", "splt": "x"}], "did you mean 'split'"),
    "teacher named student": (["teachers", "student"], {"base": "tiny_llama"}, "reserved"),
    "teacher name with slash": (["teachers", "a/b"], {"base": "tiny_llama"}, "a name that matches"),
    "teacher without base": (["teachers", "llama"], {}, "the key 'base' is missing"),
    "unknown base": (["student", "base"], "nope", "student.base: 'nope' is not in base_models"),
    "no teachers": (["teachers"], {}, "at least 1 entry"),
    "hub without repo": (["base_models", "x"], {"source": "hub"}, "needs the key 'repo'"),
    "path without model": (["base_models", "x"], {"source": "path", "path": "no"}, "has no config.json"),
    "odd heads": (["base_models", "tiny_gemma2", "n_heads"], 3, "multiple of twice n_heads"),
    "unknown target": (["student", "lora", "targets"], ["lm_head"], "one of q_proj"),
    "dropout of one": (["student", "lora", "dropout"], 1, "less than 1"),
    "no loss": (["distillation", "weights"], {"ce": 0, "kl": 0, "cosine": 0}, "are all 0"),
    "negative loss": (["distillation", "weights", "kl"], -1, "at least 0"),
    "zero temperature": (["distillation", "temperature"], 0, "greater than 0"),
    "low weight above one": (["distillation", "sample_weights"], {"low": 2}, "at most 1"),
    "softening by guess": (["distillation", "soften"], {"threshold": 0.2}, "at least 0.34"),
    "full softening": (["distillation", "soften", "share"], 1.5, "at most 1"),
    "decay of one": (["distillation", "ema"], {"decay": 1}, "less than 1"),
    "no mean to use": (["distillation", "ema"], {"use": True}, "set distillation.ema.decay"),
    "negative pseudo-labels": (["distillation", "pseudo_labels"], {"weight": -1}, "at least 0"),
    "gate": (["distillation", "teacher_gate"], "maybe", "one of refuse, warn, off"),
    "calibration": (["calibration", "method"], "platt", "one of vector"),
    "final without bits": (["quantisation", "bits"], [8], "predict.model: 'gptq4' needs 4 in"),
    "group size": (["quantisation", "group_size"], 128, "does not divide the student's"),
    "group size of 48": (["quantisation", "group_size"], 48, "one of 16, 32"),
    "weights for folds": (["ensemble", "fold_weights"], [1, 1], "one weight for each of"),
    "weights by a name": (["ensemble", "fold_weights"], "best", "one of equal, advantage"),
    "cold advantage": (["ensemble", "advantage"], {"temperature": 0}, "greater than 0"),
    "unknown baseline": (["ensemble", "advantage"], {"baseline": "mean"}, "one of trees, ema, none"),
    "weights of zero": (["ensemble", "fold_weights"], [1, 1, 0], "greater than 0"),
    "negative weights": (["ensemble", "fold_weights"], [1, 1, -1], "greater than 0"),
    "fold beyond": (["predict", "folds"], [3], "a fold beyond 2"),
    "view": (["predict", "views"], ["AC"], "one of AB, BA"),
    "no second views": (["predict"], {"second_view_share": 0}, "greater than 0"),
    "budget of one view": (["predict"], {"second_view_share": 0.5, "views": ["AB"]}, "it must be 1"),
    "budget of adapters": (["predict"], {"second_view_share": 0.5, "model": "adapters"}, "it must be 1"),
    "prior of two": (["predict"], {"known_priors": {"empty": [0.5, 0.5]}}, "a list of at least 3"),
    "prior above 1": (["predict"], {"known_priors": {"empty": [0.5, 0.5, 0.1]}}, "it must sum to 1"),
    "uneven prior": (["predict"], {"known_priors": {"identical": [0.1, 0.2, 0.7]}}, "A and B alike"),
    "parts not equal": (["folds"], {"test_fraction": 0.3, "test_part": 0}, "it must be 1/m"),
    "part too high": (["folds"], {"test_fraction": 0.2, "test_part": 5}, "has parts 0 to 4"),
    "select too large": (["folds"], {"select_fraction": 0.4, "test_fraction": 0.4}, "their sum <= 0.6"),
    "template field": (["text", "template"], "{prompt} {response_b} {response_a}:", "in this order"),
    "template brace": (["text", "template"], "{prompt", "unbalanced braces"),
    "template cue": (["text", "template"], "{prompt} {response_a} {response_b}", "a short cue"),
    "turn": (["text", "turn"], "next", "{n} once"),
    "empty rows": (["teachers", "llama", "inference"], {"rows": [5, 5]}, "start < end"),
    "max length": (["text", "max_length"], 8, "at least 32"),
    "check pair": (["check"], {"pairs": [{"prompt": "x"}]}, "'response_a' is missing"),
}  # fmt: skip


def test_rewards_on_dev_need_labels_that_leave_dev_alone():
    config = copy.deepcopy(DEMO)
    config["ensemble"] = {"fold_weights": "advantage"}
    assert validate_config(config, SCHEMA)["ensemble"]["advantage"]["temperature"] > 0
    config["distillation"]["labels"] = "out_of_fold"
    with pytest.raises(UserError, match=r"advantage\.baseline: 'trees' .* use 'ema'"):
        validate_config(config, SCHEMA)
    config["ensemble"]["advantage"] = {"baseline": "none"}
    validate_config(config, SCHEMA)


@pytest.mark.parametrize("mean", [{}, {"decay": 0.9, "use": True}])
def test_rewards_against_a_running_mean_need_it_beside_the_last_weights(mean):
    config = copy.deepcopy(DEMO)
    advantage = {"baseline": "ema"}
    config["ensemble"] = {"fold_weights": "advantage", "advantage": advantage}
    config["distillation"]["ema"] = mean
    with pytest.raises(UserError, match=r"baseline: 'ema' needs the running mean"):
        validate_config(config, SCHEMA)
    config["distillation"]["ema"] = {"decay": 0.9}
    validate_config(config, SCHEMA)


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line_that_names_the_key(name):
    path, value, message = WRONG[name]
    config = copy.deepcopy(DEMO)
    place = config
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = value
    with pytest.raises(UserError) as caught:
        validate_config(config, SCHEMA)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


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


def test_pseudo_labels_need_unlabelled_pairs():
    config = copy.deepcopy(DEMO)
    config["data"].update(test=None, unlabelled=[])
    config["distillation"]["pseudo_labels"] = {"weight": 1.0}
    with pytest.raises(
        UserError, match=r"pseudo_labels\.weight: there are no unlabelled"
    ):
        validate_config(config, SCHEMA)


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
