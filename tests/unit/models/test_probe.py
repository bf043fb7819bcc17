"""What the trial of an architecture finds, and that it would see a fault."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from prefdistill.engine import attention, decoder_layer
from prefdistill.engine.attention import ATTENTION
from prefdistill.errors import UserError
from prefdistill.models.probe import attention_of, cut_config, probe
from prefdistill.settings import LoraSettings

LORA = LoraSettings(r=4, alpha=4, dropout=0.0, targets=("all-linear",), lowest_layer=0)
ATTENTION_ONLY = replace(LORA, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "head_dim": 16,
}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 32}
# How each can be computed: attention, and whether by the engine.
FOUND = {
    "llama": ({}, LORA, ATTENTION, True),
    "mistral": ({}, LORA, ATTENTION, True),
    "ministral": ({"head_dim": 16}, LORA, ATTENTION, True),
    "qwen2": ({}, LORA, ATTENTION, True),
    "qwen3": ({"head_dim": 32}, LORA, ATTENTION, True),
    "phi3": ({"partial_rotary_factor": 0.5}, LORA, ATTENTION, True),
    "smollm3": ({}, LORA, ATTENTION, True),
    "olmo2": ({}, LORA, ATTENTION, True),
    "olmo3": ({}, LORA, ATTENTION, True),
    "gemma2": ({"head_dim": 16}, LORA, ATTENTION, True),
    "gemma3_text": ({"head_dim": 16}, LORA, ATTENTION, True),
    "olmo": ({}, LORA, ATTENTION, False),
    "glm": ({"head_dim": 16}, LORA, ATTENTION, False),
    "glm4": ({"head_dim": 16}, LORA, ATTENTION, False),
    "arcee": ({}, LORA, ATTENTION, False),
    "helium": ({"head_dim": 16}, LORA, ATTENTION, False),
    "exaone4": ({}, LORA, ATTENTION, False),
    "mixtral": (EXPERTS, ATTENTION_ONLY, ATTENTION, False),
    "qwen3_moe": (EXPERTS | {"head_dim": 16}, ATTENTION_ONLY, ATTENTION, False),
    # Attention sinks, which only eager attention computes.
    "gpt_oss": (EXPERTS | {"head_dim": 16}, ATTENTION_ONLY, "eager", False),
    # A recurrent state, which would leak from row to row.
    "qwen3_5_text": (LINEAR, LORA, "sdpa", False),
    "minimax": (EXPERTS | {"head_dim": 16}, ATTENTION_ONLY, "sdpa", False),
}


PAGE = Path(__file__).parents[3] / "docs/models.md"


def table_of_models():
    """The table of docs/models.md."""
    lines = [
        "| `model_type` | computed by | rows | LoRA |",
        "| --- | --- | --- | --- |",
    ]
    for kind, (_, lora, how, by_engine) in FOUND.items():
        computed = "engine" if by_engine else "transformers"
        rows = "packed" if how == ATTENTION else "a row at a time"
        reached = "all linear" if lora is LORA else "attention"
        lines.append(f"| {kind} | {computed} | {rows} | {reached} |")
    return "\n".join(lines)


def test_the_page_has_the_table_of_what_is_found():
    assert f"<!-- begin models -->\n\n{table_of_models()}\n\n<!--" in PAGE.read_text()


def config_of(kind, **settings):
    return AutoConfig.for_model(kind, **SHAPE | settings)


@pytest.mark.parametrize("kind", FOUND)
def test_each_architecture_is_exact_in_some_way(kind):
    settings, lora, how, by_engine = FOUND[kind]
    found = probe(config_of(kind, **settings), kind, lora)
    assert (found.attention, found.by_engine) == (how, by_engine)
    assert found.error < 1e-5


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"is_causal": False}),
        ("gemma3_text", {"head_dim": 16, "use_bidirectional_attention": True}),
    ],
)
def test_attention_that_is_not_causal_is_not_packed(kind, settings):
    assert probe(config_of(kind, **settings), kind, LORA).attention == "sdpa"


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {
            "rope_type": "longrope",
            "factor": 4.0,
            "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8,
            "original_max_position_embeddings": 64,
        },
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
@pytest.mark.parametrize("kind", ["llama", "olmo"])
def test_each_kind_of_rope_is_exact(kind, rope):
    settings = {"rope_parameters": {"rope_theta": 1e4, **rope}}
    config = config_of(kind, max_position_embeddings=256, **settings)
    assert probe(config, kind, LORA).attention == ATTENTION


def test_experts_that_lora_does_not_reach_are_one_line():
    with pytest.raises(UserError, match=r"model x: lora.targets: .* in one tensor"):
        probe(config_of("qwen3_moe", **EXPERTS, head_dim=16), "model x", LORA)


def test_an_architecture_without_a_classifier_is_one_line():
    with pytest.raises(UserError, match="a cohere model cannot be tried") as caught:
        probe(config_of("cohere"), "model x", LORA)
    assert "\n" not in str(caught.value)


def test_wrong_rows_everywhere_are_refused(monkeypatch):
    """No way is left if states are wrong, whatever the attention."""
    from prefdistill.engine.engine import Engine

    forward = Engine.forward
    monkeypatch.setattr(Engine, "forward", lambda *given: 1.1 * forward(*given))
    with pytest.raises(UserError, match=r"as transformers does .*packed: .*eager: "):
        probe(config_of("llama"), "model x", LORA)


def test_swallowed_sinks_would_be_seen(monkeypatch):
    monkeypatch.setattr(attention, "HARMLESS", {*attention.HARMLESS, "s_aux"})
    settings = EXPERTS | {"head_dim": 16}
    assert (
        probe(config_of("gpt_oss", **settings), "x", ATTENTION_ONLY).attention
        == "eager"
    )


def test_a_wrong_engine_would_be_seen(monkeypatch):
    """transformers computes the rows one at a time instead."""
    monkeypatch.setattr(decoder_layer, "rotated", lambda x, rope: x)
    assert probe(config_of("llama"), "x", LORA).attention == "sdpa"


def test_the_trial_leaves_no_trace():
    config = config_of("gemma3_text", head_dim=16)
    before, state = copy.deepcopy(config.to_dict()), torch.get_rng_state()
    probe(config, "x", LORA)
    assert config.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_cut_has_a_layer_of_each_kind():
    config = config_of("gemma3_text", num_hidden_layers=12, sliding_window=512)
    cut = cut_config(config)
    assert cut.layer_types == [
        "sliding_attention",
        "sliding_attention",
        "full_attention",
    ]
    assert (cut.num_hidden_layers, cut.sliding_window, cut.vocab_size) == (3, 16, 512)
    assert cut.hidden_size == config.hidden_size
    assert cut_config(config_of("llama", num_hidden_layers=1)).num_hidden_layers == 1


def test_known_architectures_are_not_tried_when_they_load(monkeypatch):
    monkeypatch.setattr("prefdistill.models.probe.probe", None)
    assert attention_of(config_of("llama"), "x") == ATTENTION


def test_an_unknown_architecture_is_tried_once(monkeypatch):
    tried = []

    def watched(config, name):
        tried.append(name)
        return probe(config, name)

    monkeypatch.setattr("prefdistill.models.probe.probe", watched)
    for name in ("one", "other"):
        assert attention_of(config_of("olmo", rope_theta=123.0), name) == ATTENTION
    assert tried == ["one"]
