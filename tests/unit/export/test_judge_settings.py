"""The settings that lie beside a judge's weights."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
from judge_samples import CALIBRATION, TEXT

from prefdistill.errors import DamagedFile, UserError
from prefdistill.export.judge_settings import (
    CALIBRATION_FILE,
    SETTINGS_FILE,
    read_judge_settings,
    write_judge_settings,
)
from prefdistill.judge import Judge
from prefdistill.models.manifests import WEIGHTS
from prefdistill.storage.records import read_json, write_json


def test_a_folder_that_is_no_judge_is_one_line(
    judge_folder, tmp_path, tiny_model_folder
):
    with pytest.raises(UserError, match=r"has no judge\.json, so it is not a finished"):
        Judge.load(tiny_model_folder("gemma2"))
    copy = tmp_path / "judge"
    shutil.copytree(judge_folder, copy)
    settings = json.loads((copy / "judge.json").read_text())
    write_json(copy / "judge.json", settings | {"format": 9})
    with pytest.raises(UserError, match="format 9 is not known"):
        Judge.load(copy)
    for name in ("known_priors", "second_view"):
        write_json(copy / "judge.json", settings | {name: {"view": "AB"}})
        with pytest.raises(UserError, match=rf"judge\.json: {name} is not known to"):
            Judge.load(copy)
    unset = {"known_priors": None, "second_view": None}
    write_json(copy / "judge.json", settings | unset)
    assert Judge.load(copy, "cpu").settings.views == ("AB", "BA")
    write_json(copy / "judge.json", settings)
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        Judge.load(copy)


@pytest.fixture
def bare(tmp_path):
    """A judge's folder for its settings alone, without real weights."""
    write_json(tmp_path / CALIBRATION_FILE, CALIBRATION)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).touch()
    write_judge_settings(tmp_path, TEXT, ["BA", "AB"], "a" * 64)
    return tmp_path


@pytest.mark.parametrize("name", [CALIBRATION_FILE, "config.json", "tokenizer.json"])
def test_a_file_of_another_judge_is_refused(bare, name):
    (bare / name).write_text((bare / name).read_text() + " ")
    with pytest.raises(DamagedFile, match=rf"{name}: is not the file that .*judge"):
        read_judge_settings(bare)


def test_a_tokenizer_that_is_gone_is_named(bare):
    (bare / "tokenizer.json").unlink()
    with pytest.raises(DamagedFile, match=r"tokenizer\.json: is not the file"):
        read_judge_settings(bare)


def test_a_judge_of_an_early_version_has_no_digests(bare):
    settings = read_json(bare / SETTINGS_FILE)
    assert read_judge_settings(bare).weights == settings.pop("sha256")[WEIGHTS]
    write_json(bare / SETTINGS_FILE, settings)
    assert read_judge_settings(bare).weights is None


def test_written_settings_are_read_back(bare):
    settings = read_judge_settings(bare)
    assert settings.text == TEXT
    assert settings.views == ("BA", "AB")
    np.testing.assert_allclose(settings.scaling.a, CALIBRATION["a"])
    np.testing.assert_allclose(settings.scaling.b, CALIBRATION["b"])


def test_the_file_has_what_builds_a_row_without_this_package(bare):
    assert set(read_json(bare / SETTINGS_FILE)) == {
        "format",
        "classes",
        "views",
        "text",
        "ellipsis",
        "min_answer_tokens",
        "sha256",
    }


@pytest.mark.parametrize(
    "name", [SETTINGS_FILE, CALIBRATION_FILE, "config.json", "model.safetensors"]
)
def test_a_missing_file_is_named(bare, name):
    (bare / name).unlink()
    with pytest.raises(UserError, match=rf"has no {name}, so it is not a finished"):
        read_judge_settings(bare)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["b", "a", "tie"]},
        {"classes": []},
        {"views": ["AB", "XY"]},
        {"format": None},
    ],
)
def test_settings_of_another_version_are_refused(bare, changes):
    settings = read_json(bare / SETTINGS_FILE)
    write_json(bare / SETTINGS_FILE, settings | changes)
    with pytest.raises(UserError, match="is not known to this version; use the"):
        read_judge_settings(bare)


def test_damaged_settings_are_one_line(bare):
    (bare / SETTINGS_FILE).write_text('{"format": 1')
    with pytest.raises(DamagedFile, match=r"judge\.json: not whole JSON"):
        read_judge_settings(bare)


HUGE = 10**4000
HOSTILE = [
    ("judge.json", "[]"),
    ("judge.json", "[" * 100_000),
    ("judge.json", {"views": 5}),
    ("judge.json", {"views": [[1]]}),
    ("judge.json", {"views": []}),
    ("judge.json", {"views": ["AB", "AB"]}),
    ("judge.json", {"classes": 3}),
    ("judge.json", {"text": []}),
    *[
        ("judge.json", {"text": vars(TEXT) | changed})
        for changed in (
            *({"template": "{"}, {"template": 3}, {"turn": 5}, {"max_length": HUGE}),
            *({"max_length": "9"}, {"prompt_share": "x"}, {"head_share": HUGE}),
        )
    ],
    ("calibration.json", "[" * 100_000),
    ("calibration.json", '{"a": ' + "9" * 5000 + "}"),
    ("calibration.json", {"a": [HUGE] * 3}),
    ("config.json", "[]"),
    ("config.json", "[" * 100_000),
    ("config.json", {"num_hidden_layers": 10**9}),
    ("config.json", {"hidden_size": 10**12}),
    ("config.json", {"vocab_size": HUGE}),
    ("config.json", {"hidden_size": "x"}),
    ("config.json", {"num_attention_heads": 0}),
    ("config.json", {"quantization_config": [1]}),
    ("tokenizer_config.json", "[" * 100_000),
    ("tokenizer.json", {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}}}),
    (
        "tokenizer.json",
        {
            "normalizer": {
                "type": "Replace",
                "pattern": {"Regex": "(x+x+)+y"},
                "content": "z",
            }
        },
    ),
]


@pytest.mark.parametrize(
    ("name", "change"), HOSTILE, ids=lambda value: str(value)[:40].replace("/", "")
)
def test_settings_that_are_none_are_one_line_and_fill_no_memory(
    name, change, judge_folder, tmp_path
):
    copy = tmp_path / "judge"
    shutil.copytree(judge_folder, copy)
    path = copy / name
    if isinstance(change, dict):
        limit = sys.get_int_max_str_digits()
        sys.set_int_max_str_digits(0)
        change = json.dumps(json.loads(path.read_text()) | change)
        sys.set_int_max_str_digits(limit)
    path.write_text(change)
    with pytest.raises(UserError, match=re.escape(str(copy))) as refused:
        Judge.load(copy, "cpu").compare("x" * 40, "a", "b")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["judge.json", "config.json", "tokenizer.json"])
def test_a_settings_file_of_gigabytes_is_not_read(name, judge_folder, tmp_path):
    copy = tmp_path / "judge"
    shutil.copytree(judge_folder, copy)
    with open(copy / name, "wb") as handle:
        handle.truncate(12 * 10**9)  # takes no room on the disk
    with pytest.raises(UserError, match=r"larger than 128 MB"):
        Judge.load(copy, "cpu")
