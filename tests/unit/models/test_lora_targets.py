"""The modules that an adapter's targets mean, in separate and fused architectures."""

import logging

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from prefdistill.errors import UserError
from prefdistill.models.loading import load_classifier
from prefdistill.models.lora import add_adapter
from prefdistill.models.lora_targets import find_targets, log_adapted
from prefdistill.settings import LoraSettings

SEVEN = (
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
)
FUSED = ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]


@pytest.fixture
def decoder(tiny_model_folder):
    return lambda kind: load_classifier(tiny_model_folder(kind), "fp32").base_model


@pytest.fixture(scope="module")
def experts():
    config = AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        moe_intermediate_size=16,
        num_experts=4,
        head_dim=8,
    )
    return AutoModelForSequenceClassification.from_config(config).base_model


@pytest.mark.parametrize("targets", [("all-linear",), SEVEN])
@pytest.mark.parametrize(
    ("kind", "names"),
    [("llama", sorted(SEVEN)), ("qwen3", sorted(SEVEN)), ("phi3", FUSED)],
)
def test_all_linear_layers_are_found(decoder, kind, names, targets):
    assert find_targets(decoder(kind), targets, 0) == (names, 2 * len(names))
    assert find_targets(decoder(kind), targets, 1) == (names, len(names))


def test_some_linear_layers_are_found(decoder):
    assert find_targets(decoder("llama"), ("v_proj", "q_proj"), 0) == (
        ["q_proj", "v_proj"],
        4,
    )
    parts = ("q_proj", "k_proj", "v_proj")
    assert find_targets(decoder("phi3"), parts, 0) == (["qkv_proj"], 2)


@pytest.mark.parametrize(
    ("kind", "targets", "lowest", "said"),
    [
        (
            "llama",
            ("lm_head",),
            0,
            "lora.targets: lm_head: a llama model has down_proj",
        ),
        ("phi3", ("q_proj", "v_proj"), 0, "in one module, qkv_proj: name k_proj too"),
        ("llama", ("all-linear",), 2, "lora.lowest_layer: 2, but the model's layers"),
    ],
)
def test_what_is_not_there_is_one_line(decoder, kind, targets, lowest, said):
    with pytest.raises(UserError, match=said) as caught:
        find_targets(decoder(kind), targets, lowest)
    assert "\n" not in str(caught.value)


def test_experts_in_one_tensor_are_not_left_out_silently(experts):
    for targets in (("all-linear",), ("q_proj", "down_proj"), ("q_proj", "up_proj")):
        with pytest.raises(UserError, match="experts in one tensor"):
            find_targets(experts, targets, 0)
    assert find_targets(experts, ("q_proj", "o_proj"), 0) == (["o_proj", "q_proj"], 4)


def test_the_log_says_what_carries_lora(tiny_model_folder, caplog):
    model = load_classifier(tiny_model_folder("phi3"), "fp32")
    lora = LoraSettings(
        r=2,
        alpha=2,
        dropout=0.0,
        targets=("q_proj", "k_proj", "v_proj"),
        lowest_layer=1,
    )
    model = add_adapter(model, lora, seed=0)
    with caplog.at_level(logging.INFO):
        log_adapted(model)
    assert caplog.messages == [
        "LoRA on 1 qkv_proj; without LoRA: 2 down_proj, 2 gate_up_proj, 2 o_proj, "
        "1 qkv_proj"
    ]
    adapted = [name for name, _ in model.named_modules() if name.endswith("lora_A")]
    assert len(adapted) == 1
    assert "layers.1.self_attn.qkv_proj" in adapted[0]
    assert torch.is_tensor(model.score.weight)
