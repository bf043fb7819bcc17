"""The second half of a gated MLP against its definition."""

import pytest
import torch
from engine_samples import relative
from torch import nn
from torch.nn.functional import gelu, linear, silu

from prefdistill.engine import fp8, frozen
from prefdistill.engine.gated import (
    ACTIVATIONS,
    gate,
    gate_backward,
    gated_down,
    project_gated,
)

N_ROWS, N_INNER, N_OUTPUTS, RANK = 10, 32, 16, 4


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def define(gate_up, activation):
    """Compute ``act(gate) * up``."""
    values, ups = gate_up[:, :N_INNER], gate_up[:, N_INNER:]
    act = silu if activation == "silu" else lambda x: gelu(x, approximate="tanh")
    return act(values) * ups


def make_down(kind, has_lora, bias):
    """A down projection, and the weight that it multiplies by."""
    torch.manual_seed(0)
    layer = nn.Linear(N_INNER, N_OUTPUTS, bias=bias).requires_grad_(False)
    weight = layer.weight.clone()
    if kind == "fp8":
        fp8.to_fp8(layer)
        weight = layer.fp8_weight.float() * layer.fp8_scale
    rank = RANK if has_lora else 0
    weights = frozen.gather(kind, [layer], rank, True)
    a, b = random(RANK, N_INNER, seed=1), random(N_OUTPUTS, RANK, seed=2)
    lora = ((0,), (nn.Parameter(a),), (nn.Parameter(b),)) if has_lora else ()
    group = frozen.Group(kind, weights, (N_OUTPUTS,), *lora, scaling=1.5)
    group.refresh()
    return group, weight


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("has_lora", [False, True])
@pytest.mark.parametrize("kind", ["plain", "fp8"])
def test_outputs_and_gradients(kind, has_lora, bias, activation):
    """fp8 within 6 %, as it rounds inputs and gradients too."""
    group, weight = make_down(kind, has_lora, bias)
    gate_up = random(N_ROWS, 2 * N_INNER).requires_grad_()
    gated = define(gate_up, activation)
    expected = linear(gated, weight, group.frozen.get("bias"))
    if has_lora:
        expected = expected + 1.5 * linear(linear(gated, group.a[0]), group.b[0])
    output = project_gated(gate_up, group, activation)
    tolerance = 0.06 if kind == "fp8" else 1e-5
    assert relative(output, expected) < tolerance
    leaves, direction = [gate_up, *group.a, *group.b], random(N_ROWS, N_OUTPUTS, seed=3)
    grads = torch.autograd.grad(output, leaves, direction)
    others = torch.autograd.grad(expected, leaves, direction)
    for one, other in zip(grads, others, strict=True):
        assert relative(one, other) < tolerance
    with torch.no_grad():
        assert torch.equal(project_gated(gate_up, group, activation), output)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gate_is_rounded_once_beside_columns_of_the_caller(activation):
    gate_up = random(N_ROWS, 2 * N_INNER).bfloat16()
    exact = define(gate_up.float(), activation).bfloat16()
    for n_more in (0, 3):
        output = gate(gate_up, activation, n_more)
        assert output.shape == (N_ROWS, N_INNER + n_more)
        assert torch.equal(output[:, :N_INNER], exact)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_more", [False, True])
def test_the_gates_gradient_is_autograds(has_more, activation):
    gate_up = random(N_ROWS, 2 * N_INNER).requires_grad_()
    gradient = random(N_ROWS, N_INNER, seed=1)
    more = random(N_ROWS, N_INNER, seed=2) if has_more else None
    expected = define(gate_up, activation)
    total = gradient + more if has_more else gradient
    (wanted,) = torch.autograd.grad(expected, gate_up, total)
    result, gated = gate_backward(gradient, more, gate_up.detach(), activation)
    torch.testing.assert_close(result, wanted, atol=1e-6, rtol=1e-5)
    if has_more:
        torch.testing.assert_close(gated, expected.detach(), atol=1e-6, rtol=1e-5)
    else:
        assert gated.shape == (N_ROWS, 0)


@pytest.mark.parametrize("has_lora", [False, True])
def test_the_compiler_is_told_the_shapes_that_are_computed(has_lora):
    checks = ("test_schema", "test_faketensor")
    gate_up = random(N_ROWS, 2 * N_INNER)
    a = random(RANK, N_INNER) if has_lora else None
    weight = random(N_OUTPUTS, N_INNER + (RANK if has_lora else 0))
    arguments = gate_up, a, [weight], "silu", "plain", [N_OUTPUTS], "weight"
    torch.library.opcheck(gated_down, arguments, test_utils=checks)
    more = random(N_ROWS, N_INNER) if has_lora else None
    arguments = random(N_ROWS, N_INNER), more, gate_up, "silu"
    torch.library.opcheck(gate_backward, arguments, test_utils=checks)
