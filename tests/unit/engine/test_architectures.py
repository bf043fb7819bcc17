"""Compare the table of architectures with transformers, the schema and tiny models."""

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from prefdistill.engine.architectures import (
    ARCHITECTURES,
    head_dim_of,
    lora_values,
    n_norms_after,
    widths_of,
    window_of,
)
from prefdistill.simulation.tiny_models import TINY_MODELS

SCHEMA = Path(__file__).parents[3] / "workflow" / "schemas" / "config.schema.yaml"


@pytest.fixture(params=ARCHITECTURES)
def model(request, tiny_model_folder):
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder(request.param))


def test_every_weight_of_a_layer_has_a_place(model):
    """No linear module and no norm is left out, and there is no other weight."""
    architecture = ARCHITECTURES[model.config.model_type]
    paths = {*architecture.linear_modules, *architecture.norms.values()}
    for layer in model.model.layers:
        names = {name.rpartition(".")[0] for name, _ in layer.named_parameters()}
        assert names == paths


def test_widths_are_those_of_the_modules(model):
    layer, config = model.model.layers[0], model.config
    hidden, query, keys, gated = widths_of(config)
    assert hidden == layer.self_attn.o_proj.out_features
    assert query == layer.self_attn.o_proj.in_features
    if config.model_type == "phi3":
        assert query + 2 * keys == layer.self_attn.qkv_proj.out_features
    else:
        assert keys == layer.self_attn.v_proj.out_features
    assert gated == layer.mlp.down_proj.in_features
    assert head_dim_of(config) == layer.self_attn.head_dim
    linear = [m for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    assert lora_values(config) == sum(m.in_features + m.out_features for m in linear)


def test_norms_after_products_are_counted(model):
    layer = model.model.layers[0]
    norms = [name for name, _ in layer.named_children() if "layernorm" in name]
    # Before and after both halves, only after them, or only before.
    expected = 2 if len(norms) == 4 or "input_layernorm" not in norms else 0
    assert n_norms_after(model.config) == expected


@pytest.mark.parametrize(
    ("model_type", "settings", "windows"),
    [
        ("llama", {}, [None, None]),
        ("mistral", {"sliding_window": 9}, [9, 9]),
        ("mistral", {"sliding_window": None}, [None, None]),
        ("qwen2", {"sliding_window": 9}, [None, None]),  # unless it is switched on
        ("gemma2", {"sliding_window": 9}, [9, None]),
    ],
)
def test_windows_are_those_of_the_configuration(model_type, settings, windows):
    config = AutoConfig.for_model(model_type, num_hidden_layers=2, **settings)
    assert [window_of(config, layer) for layer in (0, 1)] == windows


def find(schema, key):
    """All values of a key, anywhere in a nested schema."""
    for name, value in schema.items() if isinstance(schema, dict) else ():
        if name == key:
            yield value
        yield from find(value, key)


def test_the_schema_offers_what_the_tables_hold():
    schema = yaml.safe_load(SCHEMA.read_text())
    (architecture,) = find(schema, "architecture")
    assert architecture["enum"] == list(TINY_MODELS)
    assert set(TINY_MODELS) <= set(ARCHITECTURES)
