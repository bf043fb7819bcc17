"""An fp8 base against the definition of its products."""

import pytest
import torch
from engine_samples import (
    ADAPTERS,
    ROWS,
    TWINS,
    adapter,
    is_fast,
    linear_modules,
    plain,
    relative,
    step,
)
from torch.nn.functional import linear

from prefdistill.engine.architectures import architecture_of
from prefdistill.engine.engine import base_of
from prefdistill.engine.packing import collate
from prefdistill.models.forward import classify, core_model


def scale_of(x):
    return x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448


def rounded(x, scale=None):
    """Through e4m3 with one scale a row, ``max |x| / 448`` if none is given."""
    scale = scale_of(x) if scale is None else scale
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) * scale


def define_fp8(module):
    """Let a layer compute by definition: LoRA has the scales of input and weight."""
    base = base_of(module)
    weight, scale = rounded(base.weight.data), scale_of(base.weight.data)

    def forward(x):
        output = linear(rounded(x), weight, base.bias)
        if module is base:
            return output
        low = linear(x, module.lora_A["default"].weight)
        b = module.lora_B["default"].weight * module.scaling["default"]
        x_scale = scale_of(torch.cat([x, low], dim=-1))
        output = linear(rounded(x, x_scale), weight, base.bias)
        return output + linear(rounded(low, x_scale), rounded(b, scale))

    module.forward = forward


@pytest.mark.parametrize("architecture", TWINS)
@pytest.mark.parametrize("name", ADAPTERS)
def test_fp8_is_what_its_definition_says(judge, architecture, name):
    """Weights and inputs rounded by rows, LoRA's with them; all else as it was."""
    lora = adapter(architecture, name)
    model, reference = (
        judge(architecture, "fp8", lora),
        judge(architecture, "fp32", lora),
    )
    assert is_fast(model)
    for layer in core_model(reference).model.layers:
        for path in architecture_of(core_model(reference).config).linear_modules:
            define_fp8(layer.get_submodule(path))
    with torch.no_grad(), plain(reference):
        expected = classify(reference, collate(ROWS))
    with torch.no_grad():
        logits = classify(model, collate(ROWS))
    # A value on the border of two of e4m3 may fall on either side.
    assert relative(logits, expected) < 0.01
    close = (logits - expected).abs().amax(dim=1) < 1e-4
    assert close.float().mean() >= 0.5


@pytest.mark.parametrize("architecture", TWINS)
def test_gradients_of_an_fp8_base(judge, architecture):
    """Within a fifth of those where its weights alone are rounded, not inputs.

    Rows of 32 random values round worse than a real model's.
    """
    model, reference = judge(architecture, "fp8"), judge(architecture, "fp32")
    for module in linear_modules(core_model(reference)).values():
        module.weight.data = rounded(module.weight.data)
    with plain(reference):
        logits, grads = step(reference)
    own_logits, own_grads = step(model)
    assert relative(own_logits, logits) < 0.12
    for kind in ("lora_A", "lora_B"):
        one, other = (
            {name: grad for name, grad in tensors.items() if kind in name}
            for tensors in (own_grads, grads)
        )
        assert relative(one, other) < 0.2


def test_fp8_on_the_cpu_computes_in_float32(judge):
    model = judge("qwen2", "fp8")
    core = core_model(model)
    assert core.dtype == torch.float32
    assert is_fast(model)
    for module in linear_modules(core).values():
        assert module.weight.numel() == 0
        assert module.fp8_weight.dtype == torch.float8_e4m3fn
    logits, exact = (step(each)[0] for each in (model, judge("qwen2")))
    assert 1e-4 < relative(logits, exact) < 0.15
