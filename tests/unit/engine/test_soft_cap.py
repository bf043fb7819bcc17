"""The soft cap of attention scores, as FlexAttention is given it."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from prefdistill.engine import soft_cap as module
from prefdistill.engine.soft_cap import has_quick_tanh, quick_tanh, soft_cap


@pytest.mark.parametrize("quick", [False, True])
def test_it_is_the_bound_times_tanh(quick):
    """On the CPU the quick one is torch's own; FlexAttention maps it over scores."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 16, 8, generator=generator)
    scores = 9 * query @ key.transpose(2, 3) * 8**-0.5
    assert scores.abs().max() > 10
    expected = (5.0 * torch.tanh(scores / 5.0)).softmax(dim=-1) @ value
    output = flex_attention(9 * query, key, value, score_mod=soft_cap(5.0, quick))
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("quick", [False, True])
def test_its_gradient(quick):
    scores = torch.linspace(-20, 20, 41, dtype=torch.float64).requires_grad_()
    capped = soft_cap(5.0, quick)
    assert torch.autograd.gradcheck(lambda x: capped(x, 0, 0, 0, 0), scores)


def test_the_same_bound_gives_the_same_function():
    """Another would be compiled anew."""
    assert soft_cap(50.0, True) is soft_cap(50.0, True) is not soft_cap(50.0, False)


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "expected"),
    [
        ("cuda", torch.bfloat16, (9, 0), True),
        ("cuda", torch.float16, (7, 5), True),
        ("cuda", torch.float16, (7, 0), False),
        ("cuda", torch.float32, (9, 0), False),
        ("cpu", torch.bfloat16, (9, 0), False),
    ],
)
def test_where_the_instruction_is_taken(
    device, dtype, capability, expected, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert has_quick_tanh(torch.device(device), dtype) is expected


def test_the_compiler_knows_the_instruction():
    """Torch's compiler has a lowering for it, whose text for a kernel is the PTX."""
    from torch._inductor.codegen.triton import TritonKernelOverrides
    from torch._inductor.lowering import lowerings

    module._teach_compiler()
    assert torch.ops.prefdistill.quick_tanh.default in lowerings
    text = TritonKernelOverrides.inline_asm_elementwise("x", asm=module.ASSEMBLY)
    assert module.ASSEMBLY in text
    assert "float32" in text
    assert quick_tanh(torch.tensor([0.0, 9.0])).tolist() == pytest.approx([0, 1])
