import json
import shutil

import pytest
from judge_samples import make_judge
from odd_models import copy_model

from prefdistill.judge import Judge
from prefdistill.models.loading import load_tokenizer


@pytest.fixture
def bare(tiny_model_folder, tiny_tokenizer, tmp_path):
    """Two folders of one model: as usual, and without padding or end tokens."""
    whole = tmp_path / "whole"
    shutil.copytree(tiny_model_folder("gemma2"), whole)
    tiny_tokenizer.save_pretrained(whole)
    names = ("pad_token_id", "eos_token_id", "bos_token_id")
    bare = copy_model(whole, tmp_path / "bare", **dict.fromkeys(names))
    path = bare / "tokenizer_config.json"
    content = json.loads(path.read_text())
    for name in ("pad_token", "eos_token"):
        content.pop(name)
    path.write_text(json.dumps(content))
    assert load_tokenizer(bare).pad_token is load_tokenizer(bare).eos_token is None
    return whole, bare


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory, tiny_model_folder):
    """A finished judge of two layers."""
    folder = tmp_path_factory.mktemp("judge") / "merged"
    return make_judge(folder, tiny_model_folder("gemma2"))


@pytest.fixture(scope="module")
def judge(judge_folder):
    return Judge.load(judge_folder, "cpu")
