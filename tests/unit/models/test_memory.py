"""Estimates of memory, and the choices that follow from them."""

from types import SimpleNamespace

import pytest
import torch
from model_samples import LORA

from prefdistill.models.loading import load_classifier
from prefdistill.models.lora import (
    add_adapter,
)
from prefdistill.models.memory import count_parameters, estimate_memory, place
from prefdistill.settings import LoraSettings, read


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_parameter_counts(tiny_model_folder, precision):
    model = load_classifier(tiny_model_folder("llama"), precision)
    model = add_adapter(model, read(LoraSettings, LORA), seed=0)
    counts = count_parameters(model)
    assert counts == {
        "embedding": 400 * 32,
        "linear": 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48),
        "other": 5 * 32,
        "head": 3 * 32,
        "lora": 2 * 4 * (32 + 32 + 48 + 32),
    }


MEASURED = [  # on an H100 or H200; r 64 on all linear layers
    # model, base, tokens, recompute, dropout, has AdamW's moments, GiB
    ("gemma2", "bf16", 8192, "none", 0.0, True, 70.0),
    ("gemma2", "fp8", 8192, "none", 0.0, True, 65.5),
    ("gemma2", "nf4", 8192, "none", 0.0, True, 54.0),
    ("llama", "bf16", 8192, "none", 0.0, True, 50.9),
    ("llama", "fp8", 8192, "none", 0.0, True, 47.0),
    ("llama", "nf4", 8192, "none", 0.0, True, 37.3),
    ("gemma2", "bf16", 6144, "none", 0.05, True, 73.6),
    ("gemma2", "fp8", 6144, "none", 0.05, True, 70.4),
    ("gemma2", "nf4", 6144, "none", 0.05, True, 58.6),
    ("llama", "bf16", 8192, "none", 0.05, True, 66.9),
    ("gemma2", "bf16", 16384, "full", 0.0, False, 27.1),
    ("smollm2", "bf16", 8192, "none", 0.05, True, 6.8),
    ("smollm2", "bf16", 29568, "none", 0.05, True, 23.4),
]
SIZES = {
    "gemma2": {"embedding": 917e6, "linear": 8.32e9, "other": 6e5, "head": 1e4},
    "llama": {"embedding": 525e6, "linear": 6.98e9, "other": 3e5, "head": 1e4},
    "smollm2": {"embedding": 28e6, "linear": 106e6, "other": 4e4, "head": 2e3},
}
TRAINED = {"gemma2": 216e6, "llama": 168e6, "smollm2": 19.5e6}


def real_config(name):
    from transformers import Gemma2Config, LlamaConfig

    if name == "smollm2":
        return LlamaConfig(
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
        )
    if name == "llama":
        return LlamaConfig(
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
        )
    return Gemma2Config(
        hidden_size=3584,
        intermediate_size=14336,
        num_hidden_layers=42,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=256,
    )


@pytest.mark.parametrize(
    ("name", "precision", "tokens", "how", "dropout", "has_moments", "gib"), MEASURED
)
def test_the_memory_estimate_is_within_a_tenth_of_measured_peaks(
    name, precision, tokens, how, dropout, has_moments, gib
):
    counts = SIZES[name] | {"lora": TRAINED[name]}
    estimate = estimate_memory(
        real_config(name), counts, precision, tokens, recompute=how, dropout=dropout
    )
    if not has_moments:
        estimate -= 8 * counts["lora"] / 2**30
    assert estimate == pytest.approx(gib, rel=0.1)


def test_the_memory_estimate_falls_with_recomputation_and_nf4():
    counts = SIZES["gemma2"] | {"lora": 216e6}
    by_how = [
        estimate_memory(real_config("gemma2"), counts, "bf16", 8192, recompute=how)
        for how in ("none", "selective", "full")
    ]
    assert by_how == sorted(by_how, reverse=True)
    less = estimate_memory(real_config("gemma2"), counts, "nf4", 8192, recompute="full")
    assert less < by_how[2] - 10


def test_a_base_is_placed_before_any_model_is_loaded(tiny_model_folder, monkeypatch):
    """A GPU job asks first of all, when no attention has been made known yet."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from prefdistill.models import memory

    folder = tiny_model_folder("gemma2")
    known = ALL_ATTENTION_FUNCTIONS._global_mapping
    monkeypatch.delitem(known, "packed", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(memory, "available_gib", lambda: 80.0)
    assert memory.place(folder, "auto", 2048, lora_rank=8) == ("auto", False)


@pytest.mark.parametrize(
    ("gib", "chosen"),
    [
        (200, ("none", 16384)),
        (70, ("none", 8192)),
        (45, ("selective", 8192)),
        (30, ("full", 16384)),
        (27, ("full", 8192)),
    ],
)
def test_training_is_fitted_to_the_memory(gib, chosen, monkeypatch):
    from prefdistill.models import memory

    counts = SIZES["llama"] | {"lora": 168e6}
    core = SimpleNamespace(config=real_config("llama"))
    cuda = torch.device("cuda")
    monkeypatch.setattr(memory, "count_parameters", lambda model: counts)
    monkeypatch.setattr(memory, "core_model", lambda model: core)
    monkeypatch.setattr(memory, "base_precision", lambda core: "bf16")
    monkeypatch.setattr(memory, "device_of", lambda model: cuda)
    monkeypatch.setattr(memory, "is_sharded", lambda model: False)
    monkeypatch.setattr(memory, "available_gib", lambda: gib)
    settings = SimpleNamespace(recompute="auto", token_budget=16384)
    model = torch.nn.Linear(1, 1)
    assert memory.fit_training(model, settings, 2048) == chosen
    fixed = SimpleNamespace(recompute="full", token_budget=16384)
    assert memory.fit_training(model, fixed, 2048)[0] == "full"


@pytest.mark.parametrize(
    ("precision", "gib", "expected"),
    [
        ("auto", 80, ("auto", False)),
        ("auto", 1e-5, ("nf4", False)),
        ("bf16", 1e-5, ("bf16", False)),
    ],
)
def test_auto_becomes_nf4_where_16_bit_would_not_fit(
    precision, gib, expected, tiny_model_folder, monkeypatch
):
    from prefdistill.models import memory

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(memory, "available_gib", lambda: gib)
    assert memory.place(tiny_model_folder("llama"), precision, 256, 4) == expected


@pytest.mark.parametrize(("gib", "sharded"), [(80, False), (40, True)])
def test_a_model_is_cut_where_it_does_not_fit(tmp_path, monkeypatch, gib, sharded):
    """A 70B in NF4 with an adapter of rank 64 takes about 66 GiB."""
    from transformers import LlamaConfig

    LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
        num_attention_heads=64, num_key_value_heads=8, vocab_size=128256,
    ).save_pretrained(tmp_path)  # fmt: skip
    assert place(tmp_path, "nf4", 8192, 64) == ("nf4", False)  # one process
    monkeypatch.setattr("prefdistill.models.memory.n_processes", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    memory = type("Properties", (), {"total_memory": gib * 2**30})
    monkeypatch.setattr("torch.cuda.get_device_properties", memory)
    assert place(tmp_path, "nf4", 8192, 64) == ("nf4", sharded)
