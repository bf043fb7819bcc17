"""Compute the second half of a gated MLP, ``down(act(gate) * up)``, with LoRA.

torch's compiler would keep the product of gate and up for the backward pass, and read
its factors twice there. Here only the factors are kept. One kernel computes their
gradients and recomputes the product, which the gradient of LoRA's A needs. In the
forward pass, the product is written directly beside LoRA's columns, where the matrix
product reads it.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch.nn.functional import gelu, linear, silu

from prefdistill.engine.frozen import (
    Group,
    add_bias,
    backward_product,
    forward_product,
    gradients_of_b,
    needs_backward,
    read_by_products,
)

ACTIVATIONS = {"gelu_pytorch_tanh": partial(gelu, approximate="tanh"), "silu": silu}
DERIVATIVES = {  # functions of the output's gradient and the activation's input
    "gelu_pytorch_tanh": partial(torch.ops.aten.gelu_backward, approximate="tanh"),
    "silu": torch.ops.aten.silu_backward,
}


def project_gated(gate_up: torch.Tensor, group: Group, activation: str) -> torch.Tensor:
    """Compute a layer's down projection, ``(n, hidden)``, without LoRA's dropout.

    Args:
        gate_up: ``(n, 2 m)``, gate and up side by side.
        group: The down projection.
        activation: The gate's activation, a key of ``ACTIVATIONS``.
    """
    names, values = read_by_products(group)
    a = torch.cat(group.a).to(gate_up.dtype) if group.adapted else None
    static = group.kind, group.sizes, group.adapted, group.scaling, names, activation
    if needs_backward(gate_up, group):
        output = _GatedDown.apply(gate_up, a, static, *group.b, *values)
    else:
        described = group.kind, list(group.sizes), ",".join(names)
        output, _ = gated_down(gate_up, a, values, activation, *described)
    return add_bias(output, group)


class _GatedDown(torch.autograd.Function):
    """Compute ``h W' + low b'``, with ``h = act(gate) * up``, and its gradients."""

    @staticmethod
    def forward(ctx, gate_up, a, static, *tensors):
        kind, sizes, adapted, _, names, activation = static
        values = list(tensors[len(adapted) :])
        described = kind, list(sizes), ",".join(names)
        output, low = gated_down(gate_up, a, values, activation, *described)
        ctx.static = static
        ctx.save_for_backward(gate_up, a, low, *values)
        return output

    @staticmethod
    def backward(ctx, gradient):
        kind, sizes, adapted, scaling, names, activation = ctx.static
        gate_up, a, low, *values = ctx.saved_tensors
        frozen = dict(zip(names, values, strict=True))
        rank = 0 if a is None else len(a)
        through_down, low_gradient = backward_product(
            kind, sizes, frozen, gradient, rank
        )
        through_low = None if a is None else low_gradient @ a
        gate_up_gradient, gated = gate_backward(
            through_down, through_low, gate_up, activation
        )
        a_gradient, b_gradients = None, []
        if a is not None:
            a_gradient = low_gradient.t() @ gated
            b_gradients = gradients_of_b(gradient, low, sizes, adapted, scaling)
        nones = [None] * len(names)
        return gate_up_gradient, a_gradient, None, *b_gradients, *nones


@torch.library.custom_op("prefdistill::gated_down", mutates_args=())
def gated_down(
    gate_up: torch.Tensor,
    a: torch.Tensor | None,
    values: Sequence[torch.Tensor],
    activation: str,
    kind: str,
    sizes: Sequence[int],
    names: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ``h W' + low b'`` and ``low``, with ``h = act(gate) * up``.

    It is one operation for torch's compiler, so that ``h`` is neither copied nor kept.

    Args:
        gate_up: ``(n, 2 m)``.
        a: LoRA's A, ``(rank, m)``, or None.
        values: The tensors that ``frozen.forward_product`` reads.
        activation: The gate's activation.
        kind: Kind of the frozen weights.
        sizes: Number of outputs, as a list of one.
        names: Names of the values, joined by commas.

    Returns:
        ``(n, out)`` and ``(n, rank)``; the second is empty without LoRA.
    """
    frozen = dict(zip(names.split(","), values, strict=True))
    n_columns = gate_up.shape[1] // 2
    if a is None:
        gated = gate(gate_up, activation, 0)
        output = forward_product(kind, sizes, frozen, gated, None)
        return output, gate_up.new_empty(0)
    if kind == "plain":
        wide = gate(gate_up, activation, len(a))
        low = linear(wide[:, :n_columns], a)
        wide[:, n_columns:] = low
        return linear(wide, frozen["weight"]), low
    gated = gate(gate_up, activation, 0)
    low = linear(gated, a)
    return forward_product(kind, sizes, frozen, gated, low), low


@gated_down.register_fake
def _(gate_up, a, values, activation, kind, sizes, names):
    output = gate_up.new_empty(len(gate_up), sum(sizes))
    if a is None:
        return output, gate_up.new_empty(0)
    return output, gate_up.new_empty(len(gate_up), len(a))


def gate(gate_up: torch.Tensor, activation: str, n_more: int) -> torch.Tensor:
    """Compute ``act(gate) * up`` in float32, and round it once.

    Args:
        gate_up: ``(n, 2 m)``, gate and up side by side.
        activation: The gate's activation.
        n_more: Additional columns.

    Returns:
        ``(n, m + n_more)``; the last ``n_more`` columns are uninitialised, for the
        caller to write.
    """
    n_rows, n_columns = len(gate_up), gate_up.shape[1] // 2
    output = gate_up.new_empty(n_rows, n_columns + n_more)
    if gate_up.is_cuda:
        from prefdistill.engine.kernels import gate_rows

        gate_rows(gate_up, output[:, :n_columns], activation)
        return output
    values, ups = gate_up.float().chunk(2, dim=1)
    output[:, :n_columns] = ACTIVATIONS[activation](values) * ups
    return output


@torch.library.custom_op("prefdistill::gate_backward", mutates_args=())
def gate_backward(
    gradient: torch.Tensor,
    more: torch.Tensor | None,
    gate_up: torch.Tensor,
    activation: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the gradient of ``gate_up``, and ``act(gate) * up`` if LoRA needs it.

    Args:
        gradient: Gradient of ``act(gate) * up`` through the frozen weight, ``(n, m)``.
        more: Gradient of the same through LoRA, ``(n, m)``, or None.
        gate_up: ``(n, 2 m)``.
        activation: The gate's activation.

    Returns:
        ``(n, 2 m)`` and ``(n, m)``; the second is empty without LoRA.
    """
    if gate_up.is_cuda:
        from prefdistill.engine.kernels import gate_backward_rows

        return gate_backward_rows(gradient, more, gate_up, activation)
    total = gradient.float() if more is None else gradient.float() + more.float()
    values, ups = gate_up.float().chunk(2, dim=1)
    active = ACTIVATIONS[activation](values)
    result = torch.cat(
        [DERIVATIVES[activation](total * ups, values), total * active], 1
    )
    gated = (active * ups)[:, : 0 if more is None else None].contiguous()
    return result.to(gate_up.dtype), gated.to(gate_up.dtype)


@gate_backward.register_fake
def _(gradient, more, gate_up, activation):
    n_columns = 0 if more is None else gate_up.shape[1] // 2
    gated = gate_up.new_empty(len(gate_up), n_columns)
    return torch.empty_like(gate_up), gated
