import json
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_tiny_model import main
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from prefdistill.data.prompts import encode_pairs
from prefdistill.simulation.tiny_models import (
    TINY_MODELS,
    build_model,
    tokenizer_corpus,
    train_tokenizer,
)
from prefdistill.storage.digests import file_digest


@pytest.fixture(scope="module")
def tokenizer(architecture, pairs, text):
    return train_tokenizer(tokenizer_corpus(pairs[1], text), architecture)


@pytest.fixture(scope="module")
def folder(architecture, base_settings, text, tmp_path_factory):
    manifest = tmp_path_factory.mktemp(architecture) / "base" / "manifest.json"
    main(manifest, base_settings(architecture), text)
    return manifest.parent


@settings(max_examples=60)
@given(content=st.text())
def test_tokenizer_round_trips_any_unicode(folder, architecture, content):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = tokenizer.all_special_tokens
    if any(token in content for token in special):
        return
    if architecture == "qwen2":
        content = unicodedata.normalize("NFC", content)
    ids = tokenizer(content, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == content


def test_tokenizer_knows_its_special_tokens(architecture, tokenizer):
    tiny = TINY_MODELS[architecture]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        tiny.bos,
        tiny.eos,
        tiny.pad,
    )
    for token in (tiny.eos, tiny.pad, *tiny.markers):
        assert len(tokenizer(token, add_special_tokens=False).input_ids) == 1
        assert token in tokenizer.all_special_tokens
    first = tokenizer("Clean the boat.").input_ids[0]
    assert (first == tokenizer.bos_token_id) == (tiny.bos is not None)


def test_reloaded_tokenizer_is_the_one_that_was_trained(
    architecture, tokenizer, pairs, text, base_settings, tmp_path
):
    # The configuration decides the tokenizer's class, so it must lie beside it.
    model = build_model(base_settings(architecture), tokenizer)
    model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    first, second = (
        encode_pairs(pairs[1], each, text) for each in (tokenizer, reloaded)
    )
    for row in range(100):
        np.testing.assert_array_equal(first.tokens(row, "AB"), second.tokens(row, "AB"))
    for odd in ("Ünïcode <response_a>: x", "<turn 2>: 12.5%  \r\n\tend", "日本 🚀"):
        assert tokenizer(odd).input_ids == reloaded(odd).input_ids


def test_simulated_words_are_single_tokens(tokenizer):
    pieces = tokenizer.tokenize('Happy to help! {"steps": ["clean the boat"]}')
    assert "Ġboat" in pieces
    assert len(pieces) <= 12


def test_folder_loads_in_both_auto_classes(architecture, folder):
    causal = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    judge, report = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, dtype=torch.float32, output_loading_info=True
    )
    assert set(report["missing_keys"]) == {"score.weight"}
    config = causal.config
    assert config.model_type == architecture
    assert config.num_key_value_heads * 2 == config.num_attention_heads
    assert config.tie_word_embeddings
    assert config.dtype == torch.float32
    if architecture == "gemma2":
        assert config.final_logit_softcapping == 30.0
        assert config.attn_logit_softcapping == 50.0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Clean the boat.", return_tensors="pt").input_ids
    assert causal(ids).logits.isfinite().all()
    assert judge(ids).logits.shape == (1, 3)
    torch.testing.assert_close(
        causal.model.embed_tokens.weight, judge.model.embed_tokens.weight
    )


def test_weights_are_bfloat16_and_the_manifest_names_every_file(architecture, folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["path"] == "."
    assert manifest["model_type"] == architecture
    names = {entry.name for entry in folder.iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == names
    for name, entry in manifest["files"].items():
        assert entry["sha256"] == file_digest(folder / name)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_same_settings_same_bytes(base_settings, text, tmp_path):
    digests = []
    for name in ("once", "again"):
        main(tmp_path / name / "manifest.json", base_settings("llama"), text)
        files = ("model.safetensors", "tokenizer.json", "config.json")
        digests.append([file_digest(tmp_path / name / file) for file in files])
    assert digests[0] == digests[1]


def test_no_steps_leave_the_random_weights(base_settings, text, tmp_path):
    settings = base_settings("llama", n_steps=0)
    main(tmp_path / "manifest.json", settings, text)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    fresh = build_model(settings, AutoTokenizer.from_pretrained(tmp_path))
    for name, weight in fresh.state_dict().items():
        assert torch.equal(saved.state_dict()[name], weight.to(torch.bfloat16)), name
