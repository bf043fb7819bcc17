"""Multiply by frozen base weights (plain, NF4 or fp8), and add LoRA.

Linear modules that read the same input (q, k and v; gate and up) are one product.
Gradients are defined only for the input and for LoRA, as a frozen weight needs none.

LoRA adds ``low b'`` with ``low = x A'``. ``b``, ``(out, rank)``, is block-diagonal: it
holds the scaled B of every module in rows and columns of its own. So LoRA of all
modules is one product, too. Plain and fp8 weights have ``b`` as additional columns: one
product of ``[x | low]`` and ``[W | b]`` computes everything, without a second pass over
the output. NF4 adds ``low b'`` in place.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import dropout, linear

from prefdistill.engine.fp8 import (
    fp8_product,
    gather_fp8,
    put_fp8,
    quantise_wide,
    quantised,
    rounded_up,
)
from prefdistill.engine.nf4 import (
    gather_nf4,
    is_known,
    nf4_lists,
    nf4_product,
    quant_state,
)

Tensors = dict[str, torch.Tensor]


class Group(NamedTuple):
    """The weights of linear modules that read the same input.

    Attributes:
        kind: ``plain``, ``nf4`` or ``fp8``.
        frozen: The frozen weights in the form of their kind, ``bias`` and ``b``. They
            are a flat dictionary, so that one compiled layer serves all layers.
        sizes: Number of outputs of each module.
        adapted: Indices of the modules that carry LoRA.
        a: The ``(r, in)`` float32 weights of their LoRA.
        b: The ``(out, r)`` float32 weights of their LoRA.
        scaling: ``alpha / r``.
        dropout: Share of LoRA's inputs that training drops.
    """

    kind: str
    frozen: Tensors
    sizes: tuple[int, ...]
    adapted: tuple[int, ...] = ()
    a: tuple[torch.Tensor, ...] = ()
    b: tuple[torch.Tensor, ...] = ()
    scaling: float = 1.0
    dropout: float = 0.0

    @property
    def rank(self) -> int:
        """Return the sum of the ranks of the modules' LoRA."""
        return sum(map(len, self.a))

    def blocks(self, b: torch.Tensor) -> list[torch.Tensor]:
        """Return each adapted module's block of ``b``, ``(out, rank)``, as views."""
        rows = b.split(self.sizes)
        ranks = [len(a) for a in self.a]
        return [
            rows[index].split(ranks, dim=1)[place]
            for place, index in enumerate(self.adapted)
        ]

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy LoRA's B, which the optimiser changes, into ``frozen``."""
        if not self.adapted:
            return
        if self.kind == "fp8":
            whole = self.b[0].new_zeros(sum(self.sizes), self.rank)
        else:
            whole = self.frozen["b"]
        for block, b in zip(self.blocks(whole), self.b, strict=True):
            block.copy_(b * self.scaling)
        if self.kind == "fp8":
            put_fp8(self.frozen, whole)


def kind_of(module: nn.Module) -> str | None:
    """Return a module's kind: ``plain``, ``nf4`` or ``fp8``; None for others (GPTQ)."""
    if hasattr(module, "fp8_weight"):
        return "fp8"
    state = quant_state(module)
    if state is not None:
        return "nf4" if is_known(state) else None
    frozen = not any(weight.requires_grad for weight in module.parameters())
    return "plain" if type(module) is nn.Linear and frozen else None


def gather(
    kind: str, modules: Sequence[nn.Module], rank: int, has_gradient: bool
) -> Tensors:
    """Gather the frozen weights of linear modules that read the same input.

    Plain and fp8 weights are copied into one tensor, and the modules' own weights
    become views of it, so that no weight is stored twice.

    Args:
        kind: Kind of the modules.
        modules: The modules, without LoRA.
        rank: Sum of the ranks of their LoRA; ``b`` starts as zero.
        has_gradient: Whether gradients will pass through them.
    """
    biases = [module.bias.detach() for module in modules if module.bias is not None]
    tensors = {"bias": torch.cat(biases)} if biases else {}
    if kind == "plain":
        return tensors | _gather_plain(modules, rank)
    if kind == "fp8":
        return tensors | gather_fp8(modules, rank, has_gradient)
    if rank:
        n_outputs = sum(module.out_features for module in modules)
        dtype, device = quant_state(modules[0]).dtype, modules[0].weight.device
        tensors["b"] = torch.zeros(n_outputs, rank, dtype=dtype, device=device)
    return tensors | gather_nf4(modules)


def _gather_plain(modules: Sequence[nn.Module], rank: int) -> Tensors:
    if len(modules) == 1 and not rank:
        return {"weight": modules[0].weight.detach()}
    sizes = [module.out_features for module in modules]
    n_inputs = modules[0].in_features
    wide = modules[0].weight.new_zeros(sum(sizes), n_inputs + rank)
    for module, rows in zip(modules, wide.split(sizes), strict=True):
        rows[:, :n_inputs] = module.weight.detach()
        module.weight.data = rows[:, :n_inputs]
    return {"weight": wide, "b": wide[:, n_inputs:]} if rank else {"weight": wide}


def product(x: torch.Tensor, group: Group, training: bool) -> torch.Tensor:
    """Compute the outputs of a group's modules side by side.

    Args:
        x: Their input, ``(n, in)``.
        group: The modules.
        training: Whether LoRA drops out inputs.

    Returns:
        ``(n, out)``, in the dtype of ``x``.
    """
    names, values = read_by_products(group)
    static = group.kind, group.sizes, group.adapted, group.scaling, names
    dropped = a = None
    if group.adapted:
        a = torch.cat(group.a).to(x.dtype)
        if training and group.dropout:
            dropped = dropout(x, group.dropout)
    if not needs_backward(x, group):
        low = None if a is None else linear(x if dropped is None else dropped, a)
        output = forward_product(group.kind, group.sizes, group.frozen, x, low)
    elif a is None:
        output = _Frozen.apply(x, static, *values)
    else:
        output = _WithLora.apply(x, dropped, a, static, *group.b, *values)
    return add_bias(output, group)


def read_by_products(group: Group) -> tuple[tuple[str, ...], list[torch.Tensor]]:
    """Return the names and tensors of the frozen weights that products read."""
    # A plain weight has b as its last columns.
    apart = ("bias", "b") if group.kind == "plain" else ("bias",)
    names = tuple(name for name in group.frozen if name not in apart)
    return names, [group.frozen[name] for name in names]


def needs_backward(x: torch.Tensor, group: Group) -> bool:
    """Tell whether a group's outputs need a gradient."""
    # Without this check, dynamo binds the wrong arguments of an autograd function that
    # has no gradient to compute.
    tensors = (x, *group.b)
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def add_bias(output: torch.Tensor, group: Group) -> torch.Tensor:
    """Add a group's biases to its outputs."""
    return output + group.frozen["bias"] if "bias" in group.frozen else output


class _Frozen(torch.autograd.Function):
    """Compute ``x W'``, and the gradient of x."""

    @staticmethod
    def forward(ctx, x, static, *values):
        kind, sizes, _, _, names = static
        ctx.static = static
        ctx.save_for_backward(*values)
        return forward_product(
            kind, sizes, dict(zip(names, values, strict=True)), x, None
        )

    @staticmethod
    def backward(ctx, gradient):
        kind, sizes, _, _, names = ctx.static
        frozen = dict(zip(names, ctx.saved_tensors, strict=True))
        x_gradient, _ = backward_product(kind, sizes, frozen, gradient, 0)
        return x_gradient, None, *[None] * len(names)


class _WithLora(torch.autograd.Function):
    """Compute ``x W' + low b'``, and the gradients of x and of LoRA's A and B."""

    @staticmethod
    def forward(ctx, x, dropped, a, static, *tensors):
        kind, sizes, adapted, _, names = static
        values = tensors[len(adapted) :]
        inputs = x if dropped is None else dropped
        low = linear(inputs, a)
        ctx.static, ctx.has_dropout = static, dropped is not None
        ctx.save_for_backward(inputs, a, low, *values)
        return forward_product(
            kind, sizes, dict(zip(names, values, strict=True)), x, low
        )

    @staticmethod
    def backward(ctx, gradient):
        kind, sizes, adapted, scaling, names = ctx.static
        inputs, a, low, *values = ctx.saved_tensors
        frozen = dict(zip(names, values, strict=True))
        x_gradient, low_gradient = backward_product(
            kind, sizes, frozen, gradient, len(a)
        )
        a_gradient = low_gradient.t() @ inputs
        b_gradients = gradients_of_b(gradient, low, sizes, adapted, scaling)
        dropped_gradient, through_low = None, low_gradient @ a
        if ctx.has_dropout:
            dropped_gradient = through_low
        else:
            # In float32: torch's compiler would turn a 16-bit sum of two products into
            # a product that first copies the other term.
            total = x_gradient.float() + through_low.float()
            x_gradient = total.to(x_gradient.dtype)
        nones = [None] * len(names)
        return x_gradient, dropped_gradient, a_gradient, None, *b_gradients, *nones


def gradients_of_b(
    gradient: torch.Tensor,
    low: torch.Tensor,
    sizes: tuple[int, ...],
    adapted: tuple[int, ...],
    scaling: float,
) -> list[torch.Tensor]:
    """Compute the gradient of each adapted module's B.

    Args:
        gradient: Gradient of the outputs, ``(n, out)``.
        low: ``(n, rank)``.
        sizes: Number of outputs of each module.
        adapted: Indices of the modules with LoRA.
        scaling: ``alpha / r``.

    Returns:
        ``(out, r)`` float32 each.
    """
    parts = gradient.split(sizes, dim=1)
    lows = low.chunk(len(adapted), dim=1)
    return [
        (parts[index].t() @ part).float() * scaling
        for index, part in zip(adapted, lows, strict=True)
    ]


def forward_product(
    kind: str,
    sizes: Sequence[int],
    frozen: Tensors,
    x: torch.Tensor,
    low: torch.Tensor | None,
) -> torch.Tensor:
    """Compute ``x W' + low b'``.

    Args:
        kind: ``plain``, ``nf4`` or ``fp8``.
        sizes: Number of outputs of each module.
        frozen: The frozen weights.
        x: ``(n, in)``.
        low: ``(n, rank)``; None without LoRA.

    Returns:
        ``(n, out)``.
    """
    if kind == "plain":
        return linear(x if low is None else torch.cat([x, low], 1), frozen["weight"])
    if kind == "fp8":
        n_more = frozen["weight"].shape[1] - x.shape[1]
        if low is None:
            x8, scale = quantised(x)
        else:
            x8, scale = quantise_wide(x, low, frozen["factor"], n_more)
        return fp8_product(x8, scale, frozen["weight"], frozen["scale"], x.dtype)
    lists = nf4_lists(frozen, sizes)
    return nf4_product(x, *lists, sizes, low, frozen.get("b"), False)


def backward_product(
    kind: str,
    sizes: tuple[int, ...],
    frozen: Tensors,
    gradient: torch.Tensor,
    rank: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute ``gradient W`` and, if ``rank`` is not 0, ``gradient b``.

    Args:
        kind: ``plain``, ``nf4`` or ``fp8``.
        sizes: Number of outputs of each module.
        frozen: The frozen weights.
        gradient: Gradient of the outputs, ``(n, out)``.
        rank: Sum of the ranks of the modules' LoRA.

    Returns:
        ``(n, in)`` and ``(n, rank)``, which may be views of one tensor; None for the
        second without LoRA.
    """
    if kind == "nf4":
        low_gradient = gradient @ frozen["b"] if rank else None
        lists = nf4_lists(frozen, sizes)
        return nf4_product(gradient, *lists, sizes, None, None, True), low_gradient
    if kind == "plain":
        both, n_more = gradient @ frozen["weight"], rank
    else:
        g8, scale = quantised(gradient)
        weight = frozen["weight_t"], frozen["scale_t"]
        both, n_more = fp8_product(g8, scale, *weight, gradient.dtype), rounded_up(rank)
    if not rank:
        return both, None
    n_inputs = both.shape[1] - n_more
    return both[:, :n_inputs], both[:, n_inputs : n_inputs + rank]
