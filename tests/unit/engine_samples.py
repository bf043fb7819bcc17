"""Small models with adapters, one training step, and comparisons of results."""

from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch

from prefdistill.engine.architectures import ARCHITECTURES, LLAMA, architecture_of
from prefdistill.engine.engine import base_of
from prefdistill.engine.packing import collate
from prefdistill.models.forward import classify, engine_of
from prefdistill.models.lora import add_adapter
from prefdistill.settings import LoraSettings, read

LENGTHS = (5, 30, 11, 17, 29, 1, 30)
TARGETS = [path.rpartition(".")[2] for path in LLAMA.linear_modules]
LORA = {"r": 4, "alpha": 6, "dropout": 0.0, "targets": TARGETS, "lowest_layer": 0}
ADAPTERS = {
    "all": LORA,
    "qv": LORA | {"targets": ["q_proj", "v_proj"]},
    "upper": LORA | {"lowest_layer": 1},
    "none": None,
}
# Adapters of a part of a fused module would be refused.
FUSED_ADAPTERS = ADAPTERS | {"qv": LORA | {"targets": ["qkv_proj"]}}
# Every entry of the table; qwen2, gemma2 and mistral with windows.
TWINS = (*ARCHITECTURES, "llama_with_biases")
BASES = ("fp32", "nf4", "fp8")
ROWS = [np.random.default_rng(0).integers(4, 400, length) for length in LENGTHS]


def adapter(architecture, name):
    return (FUSED_ADAPTERS if architecture == "phi3" else ADAPTERS)[name]


def adapt(model, lora=LORA):
    """With an adapter whose B is not zero; without one, the head trains alone."""
    if lora is None:
        model.score.requires_grad_(True)
        return model
    model = add_adapter(model, read(LoraSettings, lora), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05, generator=generator)
    return model


@contextmanager
def plain(model):
    """Meanwhile, transformers and PEFT compute."""
    with mock.patch.object(engine_of(model), "refresh", return_value=False):
        yield


def is_fast(model):
    return engine_of(model).refresh()


def groups_of(model):
    """Each layer's groups of gathered modules."""
    return [layer.weights.groups for layer in engine_of(model).layers]


def loss_of(model, batches, shared=None, judge=classify):
    logits = torch.cat([judge(model, collate(batch, 1, shared)) for batch in batches])
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    return logits, (logits * weights).sum()


def gradients(model):
    named = model.named_parameters()
    return {name: w.grad.clone() for name, w in named if w.grad is not None}


def step(model, batches=(ROWS,), seed=0, shared=None, judge=classify):
    """Logits and gradients in training."""
    model.train().zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    logits, loss = loss_of(model, batches, shared, judge)
    loss.backward()
    return logits.detach(), gradients(model)


def relative(value, expected):
    if isinstance(expected, dict):
        assert value.keys() == expected.keys()
        value, expected = (
            torch.cat([tensors[name].flatten() for name in expected])
            for tensors in (value, expected)
        )
    return float((value - expected).detach().norm() / expected.detach().norm())


def linear_modules(core):
    return {
        f"{number}.{path}": base_of(layer.get_submodule(path))
        for number, layer in enumerate(core.model.layers)
        for path in architecture_of(core.config).linear_modules
    }
