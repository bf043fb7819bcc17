"""Models and adapters that the pipeline cannot use, or that lack what others have."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefdistill.data.prompts import FIELDS, encode_pairs
from prefdistill.errors import UserError
from prefdistill.export.merging import classifier_config, write_classifier
from prefdistill.models.adapter_files import read_adapter
from prefdistill.models.loading import (
    load_classifier,
    load_language_model,
    load_tokenizer,
)
from prefdistill.models.lora import add_adapter, load_adapter, save_adapter
from prefdistill.models.scoring import score_pairs
from prefdistill.settings import LoraSettings, TextSettings, read
from prefdistill.storage.logits import VIEWS

TEXT = {
    "template": "<prompt>: {prompt} <response_a>: {response_a} "
    "<response_b>: {response_b} <verdict>:",
    "turn": " <turn {n}>: ",
    "max_length": 64,
    "prompt_share": 0.25,
    "head_share": 0.5,
}
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1}
# Of each: its settings, the class that saves it, and what is said of it.
ODD = {
    "no classifier of its kind": (
        transformers.MambaConfig(**SMALL),
        transformers.MambaForCausalLM,
        "transformers has no SequenceClassification class for model_type mamba",
    ),
    "encoder": (
        transformers.BertConfig(**SMALL, num_attention_heads=2, intermediate_size=32),
        transformers.BertForSequenceClassification,
        "BertForSequenceClassification is not built of decoder layers",
    ),
    "layers elsewhere": (
        transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2),
        transformers.GPT2LMHeadModel,
        "GPT2ForSequenceClassification is not built of decoder layers",
    ),
}
ROWS = [["what is it", "a river", "a mountain in a list"], ["hi", "", "yes"]]


def pairs():
    columns = zip(FIELDS, zip(*ROWS, strict=True), strict=True)
    table = {name: [[text] for text in texts] for name, texts in columns}
    return pa.table({"id": ["train:1", "train:2"], **table})


def copy_model(folder, target, **settings):
    """A model with other settings; None takes one away."""
    shutil.copytree(folder, target)
    for path in (target / "config.json", target / "generation_config.json"):
        if path.exists():
            content = json.loads(path.read_text()) | settings
            kept = {key: value for key, value in content.items() if value is not None}
            path.write_text(json.dumps(kept))
    return target


@pytest.mark.parametrize("kind", ODD)
def test_another_architecture_is_refused_in_one_line(kind, tmp_path):
    config, model_class, said = ODD[kind]
    model_class(config).save_pretrained(tmp_path)
    with pytest.raises(UserError) as caught:
        load_classifier(tmp_path, "fp32")
    text = str(caught.value)
    assert text == (
        f"{tmp_path / 'config.json'}: {said}; name a base of another architecture, "
        "such as llama, mistral, qwen2 or gemma2"
    )


def test_an_unknown_kind_of_model_is_refused_in_one_line(tiny_model_folder, tmp_path):
    folder = copy_model(tiny_model_folder("llama"), tmp_path / "m", model_type="new")
    for load in (load_classifier, load_language_model):
        with pytest.raises(UserError) as caught:
            load(folder, "fp32")
        assert str(caught.value).startswith(
            f"{folder / 'config.json'}: not settings of a model that is known here ("
        )
        assert len(str(caught.value).splitlines()) == 1


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


def logits_of(folder):
    model = load_classifier(folder, "fp32", head_seed=1)
    return score_pairs(
        model, encode_pairs(pairs(), load_tokenizer(folder), read(TextSettings, TEXT))
    )


def test_a_model_without_padding_and_end_tokens_scores_alike(bare):
    whole, bare = bare
    assert logits_of(bare) == pytest.approx(logits_of(whole), abs=1e-6)
    assert load_classifier(bare, "fp32").config.pad_token_id in (None, 0)


def test_a_merged_model_without_a_padding_token_is_right_row_by_row(bare, tmp_path):
    """Plain transformers refuses it a padded batch, rather than score a wrong token."""
    _, folder = bare
    head = torch.ones(3, 32)
    assert classifier_config(json.loads((folder / "config.json").read_text()), "x")[
        "pad_token_id"
    ] in (None, 0)
    write_classifier(folder, tmp_path / "merged", head, dtype="bfloat16")
    ours = logits_of(tmp_path / "merged")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "merged", dtype=torch.float32
    )
    encoded = encode_pairs(pairs(), load_tokenizer(folder), read(TextSettings, TEXT))
    for row in range(len(ROWS)):
        for place, view in enumerate(VIEWS):
            tokens = torch.from_numpy(encoded.tokens(row, view).astype(np.int64))[None]
            with torch.no_grad():
                expected = plain(tokens).logits[0].numpy()
            assert ours[row, place] == pytest.approx(expected, abs=1e-3)


def test_a_vocabulary_smaller_than_an_id_is_refused(
    tiny_model_folder, tiny_tokenizer, tmp_path
):
    folder = copy_model(tiny_model_folder("llama"), tmp_path / "m")
    tiny_tokenizer.save_pretrained(folder)
    load_tokenizer(folder)
    other = AutoTokenizer.from_pretrained(folder)
    other.add_tokens([f"<new {number}>" for number in range(401 - len(other))])
    other.save_pretrained(folder)
    with pytest.raises(UserError) as caught:
        load_tokenizer(folder)
    assert str(caught.value) == (
        f"{folder / 'tokenizer.json'}: has token id 400, but config.json a vocab_size "
        "of 400; take the tokenizer that the model was made with"
    )


def test_fewer_embeddings_than_the_settings_say_are_refused(
    tiny_model_folder, tmp_path
):
    folder = copy_model(tiny_model_folder("llama"), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    tensors[name] = tensors[name][:300].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"shapes are not those of its config\.json"):
        load_classifier(folder, "fp32")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"use_rslora": True}, "rsLoRA (use_rslora)"),
        ({"use_dora": True}, "DoRA (use_dora)"),
        ({"lora_bias": True}, "a bias in lora_B (lora_bias)"),
        ({"rank_pattern": {"q_proj": 2}}, "ranks that differ by layer (rank_pattern)"),
        ({"bias": "lora_only"}, "trained biases (bias: lora_only)"),
    ],
)
def test_other_adapters_of_peft_are_refused_wherever_they_are_read(
    options, what, tiny_model_folder, tmp_path
):
    """Their mean is not that of A and B, nor of (alpha / r) B A."""
    from peft import LoraConfig, get_peft_model

    kind = {"task_type": "CAUSAL_LM"}
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder("llama"))
    config = LoraConfig(target_modules=["q_proj"], r=4, lora_alpha=8, **kind | options)
    get_peft_model(model, config).save_pretrained(tmp_path)
    base = load_classifier(tiny_model_folder("llama"), "fp32")
    for load in (
        read_adapter,
        lambda folder: load_adapter(base, folder, trainable=False),
    ):
        with pytest.raises(UserError) as caught:
            load(tmp_path)
        assert str(caught.value) == (
            f"{tmp_path / 'adapter_config.json'}: {what} cannot be averaged or merged "
            "exactly; it must be a plain LoRA adapter; copy or fetch it again"
        )


def test_an_adapter_of_another_shape_of_base_is_refused(tiny_model_folder, tmp_path):
    lora = LoraSettings(r=2, alpha=4, dropout=0.0, targets=("o_proj",), lowest_layer=0)
    model = load_classifier(tiny_model_folder("llama"), "fp32")
    adapted = add_adapter(model, lora, seed=0)
    save_adapter(adapted, tmp_path)
    other = load_classifier(tiny_model_folder("gemma2"), "fp32")
    with pytest.raises(UserError, match="its shapes are not those of this base model"):
        load_adapter(other, tmp_path, trainable=False)
