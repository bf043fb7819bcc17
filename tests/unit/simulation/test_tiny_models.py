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
from prefdistill.settings import TextSettings, read
from prefdistill.simulation.dense_labels import TAGS, make_dense_labels
from prefdistill.simulation.dense_training import batches, pretrain
from prefdistill.simulation.simulated_pairs import HEDGES
from prefdistill.simulation.tiny_models import (
    TINY_MODELS,
    build_model,
    draw_pairs,
    tokenizer_corpus,
    train_tokenizer,
)
from prefdistill.storage.digests import file_digest

TEXT = {
    "template": "<prompt>: {prompt}\n\n<response_a>: {response_a}\n\n"
    "<response_b>: {response_b}\n\n<verdict>:",
    "turn": "\n<turn {n}>: ",
    "max_length": 256,
    "prompt_share": 0.25,
    "head_share": 0.5,
}
SMALL = {"hidden_size": 32, "n_layers": 2, "n_heads": 4, "pretrain_steps": 3, "seed": 0}


@pytest.fixture(scope="module")
def pairs():
    return draw_pairs(0, 400)


@pytest.fixture(scope="module", params=TINY_MODELS)
def tokenizer(request, pairs):
    corpus = tokenizer_corpus(pairs[1], TEXT)
    return request.param, train_tokenizer(corpus, request.param)


@pytest.fixture(scope="module", params=TINY_MODELS)
def folder(request, tmp_path_factory):
    manifest = tmp_path_factory.mktemp(request.param) / "base" / "manifest.json"
    main(manifest, SMALL | {"architecture": request.param}, TEXT)
    return request.param, manifest.parent


@pytest.fixture(scope="module")
def encoded(pairs):
    answers, table = pairs
    tokenizer = train_tokenizer(tokenizer_corpus(table, TEXT), "gemma2")
    encoded = encode_pairs(table, tokenizer, read(TextSettings, TEXT))
    return tokenizer, encoded, make_dense_labels(answers, encoded, tokenizer)


@settings(max_examples=60)
@given(text=st.text())
def test_tokenizer_round_trips_any_unicode(folder, text):
    tokenizer = AutoTokenizer.from_pretrained(folder[1])
    special = tokenizer.all_special_tokens
    if any(token in text for token in special):
        return
    if folder[0] == "qwen2":
        text = unicodedata.normalize("NFC", text)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text


def test_tokenizer_knows_its_special_tokens(tokenizer):
    architecture, tokenizer = tokenizer
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


def test_reloaded_tokenizer_is_the_one_that_was_taught(tokenizer, pairs, tmp_path):
    architecture, tokenizer = tokenizer
    # The configuration decides the tokenizer's class, so it must lie beside it.
    build_model(
        SMALL | {"architecture": architecture}, tokenizer
    ).config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    first, second = (
        encode_pairs(pairs[1], each, read(TextSettings, TEXT))
        for each in (tokenizer, reloaded)
    )
    for row in range(100):
        np.testing.assert_array_equal(first.tokens(row, "AB"), second.tokens(row, "AB"))
    for text in ("Ünïcode <response_a>: x", "<turn 2>: 12.5%  \r\n\tend", "日本 🚀"):
        assert tokenizer(text).input_ids == reloaded(text).input_ids


def test_simulated_words_are_single_tokens(tokenizer):
    _, tokenizer = tokenizer
    pieces = tokenizer.tokenize('Happy to help! {"steps": ["clean the boat"]}')
    assert "Ġboat" in pieces
    assert len(pieces) <= 12


def test_folder_loads_in_both_auto_classes(folder):
    architecture, path = folder
    causal = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    judge, report = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=3, dtype=torch.float32, output_loading_info=True
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
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = tokenizer("Clean the boat.", return_tensors="pt").input_ids
    assert causal(ids).logits.isfinite().all()
    assert judge(ids).logits.shape == (1, 3)
    torch.testing.assert_close(
        causal.model.embed_tokens.weight, judge.model.embed_tokens.weight
    )


def test_weights_are_bfloat16_and_the_manifest_names_every_file(folder):
    architecture, path = folder
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["path"] == "."
    assert manifest["model_type"] == architecture
    names = {entry.name for entry in path.iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == names
    for name, entry in manifest["files"].items():
        assert entry["sha256"] == file_digest(path / name)
    assert json.loads((path / "config.json").read_text())["dtype"] == "bfloat16"


def test_same_settings_same_bytes(tmp_path):
    digests = []
    for name in ("once", "again"):
        main(tmp_path / name / "manifest.json", SMALL | {"architecture": "llama"}, TEXT)
        files = ("model.safetensors", "tokenizer.json", "config.json")
        digests.append([file_digest(tmp_path / name / file) for file in files])
    assert digests[0] == digests[1]


def test_tags_name_what_the_words_say(pairs, encoded):
    answers, table = pairs
    labels = encoded[2]
    hedge, on_topic, off_topic = (
        1 + len(TAGS) + TAGS.index(name) for name in ("hedge", "on_topic", "off_topic")
    )
    n_hedges = 0
    for row, text in enumerate(table.column("response_b").to_pylist()[:100]):
        tags = labels.tags[row]
        words = [word.strip('{["') for word in " ".join(text).lower().split()]
        expected = sum(word + " " in HEDGES for word in words)
        assert (tags == hedge).sum() == expected
        n_hedges += expected
        n_on, n_off = (tags == on_topic).sum(), (tags == off_topic).sum()
        assert n_on + n_off == answers.n_items[row, 1] + answers.multi_turn[row]
        on_topic_ratings = labels.ratings[:, 1, 0]
        assert (n_off == 0) == (on_topic_ratings[row] == on_topic_ratings.max())
        assert tags[0] == 0
        assert labels.shown[row][-1] == 2
    assert n_hedges > 10


def test_batches_cover_every_row_once_an_epoch():
    lengths = np.random.default_rng(0).integers(20, 90, size=100)
    rows = np.concatenate(list(batches(lengths, 0, 7)))
    assert sorted(rows) == list(range(100))
    assert len(list(batches(lengths, 0, 19))) == 19
    assert list(batches(lengths, 0, 0)) == []


@pytest.mark.parametrize("architecture", TINY_MODELS)
def test_pretraining_reduces_the_dense_loss(encoded, architecture):
    tokenizer, pairs_encoded, labels = encoded
    model = build_model(SMALL | {"architecture": architecture}, tokenizer)
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    losses = pretrain(
        model, pairs_encoded, labels, n_steps=50, learning_rate=5e-3, seed=0
    )
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert not torch.equal(before, model.model.layers[0].mlp.up_proj.weight)


def test_no_steps_leave_the_random_weights(tmp_path):
    settings = SMALL | {"architecture": "llama", "pretrain_steps": 0}
    main(tmp_path / "manifest.json", settings, TEXT)
    assert (tmp_path / "model.safetensors").is_file()
