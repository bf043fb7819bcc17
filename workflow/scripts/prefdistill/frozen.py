"""Products with frozen base weights, plain, NF4 or fp8, and LoRA on top.

Linear layers that read the same input (q, k and v; gate and up) are one product. A
frozen weight needs no gradient, so only the input's and LoRA's are defined. Each kind
keeps its weights as a flat dictionary of tensors, so one compiled layer serves all.

LoRA adds ``low b'`` with ``low = x A'``. ``b``, ``(out, rank)`` in the computing dtype,
holds the scaled B of all layers that read the input, each in rows and columns of its
own, so that they are one product too. Plain weights have it as further columns: ``[x |
low]`` times ``[W | b]`` is all, and no output is read and written again. The others add
it in place; the gradient's product in fp8 has it as further rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import dropout, linear

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
WIDE = 8000
NF4_BLOCK = 64
# Of the absmax of NF4's blocks, which is quantised in turn ("double quantisation").
NF4_NESTED_BLOCK = 256

Tensors = dict[str, torch.Tensor]


class Group(NamedTuple):
    """Linear layers that read the same input, as one.

    Attributes:
        kind: ``plain``, ``nf4`` or ``fp8``.
        frozen: The frozen weights, as their kind has them, ``bias`` and ``b``.
        sizes: Outputs of each layer.
        adapted: Indices of the layers that carry LoRA.
        a: Their ``(r, in)`` float32 weights.
        b: Their ``(out, r)`` float32 weights.
        scaling: ``alpha / r``.
        dropout: Share of inputs to LoRA dropped in training.
    """

    kind: str
    frozen: Tensors
    sizes: tuple[int, ...]
    adapted: tuple[int, ...] = ()
    a: tuple[torch.Tensor, ...] = ()
    b: tuple[torch.Tensor, ...] = ()
    scaling: float = 1.0
    dropout: float = 0.0

    def blocks(self, b: torch.Tensor) -> list[torch.Tensor]:
        """The part of ``(out, rank)`` that belongs to each layer with LoRA."""
        rows = b.split(self.sizes)
        ranks = [len(a) for a in self.a]
        return [
            rows[index].split(ranks, dim=1)[place]
            for place, index in enumerate(self.adapted)
        ]

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy LoRA's B, which an optimiser has changed, to where products read it."""
        if self.adapted:
            for block, b in zip(self.blocks(self.frozen["b"]), self.b, strict=True):
                block.copy_(b * self.scaling)
            if "weight_t" in self.frozen:
                rank = self.frozen["b"].shape[1]
                below, scale = rowwise_fp8(self.frozen["b"].t())
                self.frozen["weight_t"][-rank:].copy_(below)
                self.frozen["scale_t"][-rank:].copy_(scale)


def kind_of(module: nn.Module) -> str | None:
    """``plain``, ``nf4`` or ``fp8``; None for other layers (GPTQ, sharded)."""
    if hasattr(module, "fp8_weight"):
        return "fp8"
    state = _quant_state(module)
    if state is not None:
        nested = state.nested and state.state2.blocksize == NF4_NESTED_BLOCK
        known = state.quant_type == "nf4" and state.blocksize == NF4_BLOCK and nested
        return "nf4" if known else None
    frozen = not any(weight.requires_grad for weight in module.parameters())
    return "plain" if type(module) is nn.Linear and frozen else None


def _quant_state(module: nn.Module) -> Any:
    """bitsandbytes' description of an NF4 weight, or None."""
    own = getattr(getattr(module, "weight", None), "quant_state", None)
    return own or getattr(module, "quant_state", None)


def gather(
    kind: str, modules: Sequence[nn.Module], rank: int, has_gradient: bool
) -> Tensors:
    """The frozen weights of linear layers that read the same input.

    Plain and fp8 weights move into one tensor of which the layers' own become views, so
    that memory stays as it was.

    Args:
        kind: Of the layers.
        modules: The layers, without LoRA.
        rank: Sum of the ranks of their LoRA; ``b`` is zero.
        has_gradient: Whether gradients will pass through them.
    """
    biases = [module.bias.detach() for module in modules if module.bias is not None]
    tensors = {"bias": torch.cat(biases)} if biases else {}
    if kind == "plain":
        return tensors | _gather_plain(modules, rank)
    dtype, device = torch.float32, modules[0].weight.device
    if kind == "nf4":
        dtype = _quant_state(modules[0]).dtype
        tensors |= _gather_nf4(modules)
    else:
        dtype = modules[0].weight.dtype
        tensors |= _gather_fp8(modules, rank, has_gradient)
    if rank:
        n_outputs = sum(module.out_features for module in modules)
        tensors["b"] = torch.zeros(n_outputs, rank, dtype=dtype, device=device)
    return tensors


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


def project(x: torch.Tensor, group: Group, training: bool) -> tuple[torch.Tensor, ...]:
    """Outputs of a group's layers, each ``(n, out)``, from ``(n, in)``."""
    apart = ("bias", "b") if group.kind == "plain" else ("bias",)
    names = tuple(name for name in group.frozen if name not in apart)
    values = [group.frozen[name] for name in names]
    static = group.kind, group.sizes, group.adapted, group.scaling, names
    dropped = a = None
    if group.adapted:
        a = torch.cat(group.a).to(x.dtype)
        if training and group.dropout:
            dropped = dropout(x, group.dropout)
    with_gradient = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (x, *group.b)
    )
    if not with_gradient:  # dynamo binds such a function's arguments wrongly then
        low = None if a is None else linear(x if dropped is None else dropped, a)
        output = _forward(group.kind, group.sizes, group.frozen, x, low)
    elif a is None:
        output = _Frozen.apply(x, static, *values)
    else:
        output = _WithLora.apply(x, dropped, a, static, *group.b, *values)
    if "bias" in group.frozen:
        output = output + group.frozen["bias"]
    return output.split(group.sizes, dim=1)


class _Frozen(torch.autograd.Function):
    """``x W'`` and its gradient of x."""

    @staticmethod
    def forward(ctx, x, static, *values):
        kind, sizes, _, _, names = static
        ctx.static = static
        ctx.save_for_backward(*values)
        return _forward(kind, sizes, dict(zip(names, values, strict=True)), x, None)

    @staticmethod
    def backward(ctx, gradient):
        kind, sizes, _, _, names = ctx.static
        frozen = dict(zip(names, ctx.saved_tensors, strict=True))
        x_gradient, _ = _backward(kind, sizes, frozen, gradient, 0)
        return x_gradient, None, *[None] * len(names)


class _WithLora(torch.autograd.Function):
    """``x W' + low b'`` and its gradients of x and of LoRA's A and B."""

    @staticmethod
    def forward(ctx, x, dropped, a, static, *tensors):
        kind, sizes, adapted, _, names = static
        values = tensors[len(adapted) :]
        inputs = x if dropped is None else dropped
        low = linear(inputs, a)
        ctx.static, ctx.has_dropout = static, dropped is not None
        ctx.save_for_backward(inputs, a, low, *values)
        return _forward(kind, sizes, dict(zip(names, values, strict=True)), x, low)

    @staticmethod
    def backward(ctx, gradient):
        kind, sizes, adapted, scaling, names = ctx.static
        inputs, a, low, *values = ctx.saved_tensors
        frozen = dict(zip(names, values, strict=True))
        x_gradient, low_gradient = _backward(kind, sizes, frozen, gradient, len(a))
        a_gradient = low_gradient.t() @ inputs
        parts = gradient.split(sizes, dim=1)
        b_gradients = [
            (parts[index].t() @ low_part).float() * scaling
            for index, low_part in zip(
                adapted, low.chunk(len(adapted), dim=1), strict=True
            )
        ]
        dropped_gradient, through_low = None, low_gradient @ a
        if ctx.has_dropout:
            dropped_gradient = through_low
        else:
            # In float32, as a compiler would turn a sum of products into one that
            # copies its first term.
            total = x_gradient.float() + through_low.float()
            x_gradient = total.to(x_gradient.dtype)
        nones = [None] * len(names)
        return x_gradient, dropped_gradient, a_gradient, None, *b_gradients, *nones


def _forward(
    kind: str,
    sizes: tuple[int, ...],
    frozen: Tensors,
    x: torch.Tensor,
    low: torch.Tensor | None,
) -> torch.Tensor:
    """``x W' + low b'``, ``(n, out)``."""
    if kind == "plain":
        return linear(x if low is None else torch.cat([x, low], 1), frozen["weight"])
    b = frozen.get("b")
    if kind == "fp8":
        x8, scale = _quantised(x)
        weight = frozen["weight"], frozen["scale"]
        return fp8_product(x8, scale, *weight, low, b, x.dtype)
    return nf4_product(x, *_nf4_lists(frozen, sizes), sizes, low, b, False)


def _backward(
    kind: str,
    sizes: tuple[int, ...],
    frozen: Tensors,
    gradient: torch.Tensor,
    rank: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``gradient W`` and, with LoRA of that rank, ``gradient b``."""
    if kind == "plain":
        both = gradient @ frozen["weight"]
        return (both[:, :-rank], both[:, -rank:]) if rank else (both, None)
    if kind == "fp8":
        g8, scale = _quantised(gradient)
        weight = frozen["weight_t"], frozen["scale_t"]
        both = fp8_product(g8, scale, *weight, None, None, gradient.dtype)
        return (both[:, :-rank], both[:, -rank:]) if rank else (both, None)
    low_gradient = gradient @ frozen["b"] if rank else None
    lists = _nf4_lists(frozen, sizes)
    return nf4_product(gradient, *lists, sizes, None, None, True), low_gradient


# fp8: e4m3 with one scale a row, as `torch._scaled_mm` takes them. The forward pass
# scales the weight's rows (outputs), the backward pass its columns (inputs), as scales
# along the summed dimension would not factor out: hence two copies, together no more
# than bf16.


def rowwise_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise to ``(n, k)`` e4m3 and ``(n, 1)`` float32 scales: ``x = q * scale``."""
    wide = x.float()
    scale = wide.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / FP8_MAX
    return (wide / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


@torch.library.custom_op("prefdistill::quantise_wide", mutates_args=())
def quantise_wide(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``rowwise_fp8`` of wide rows, which a compiler would read twice."""
    if x.device.type != "cuda":
        return rowwise_fp8(x)
    from prefdistill.fp8_kernel import quantise_rows

    return quantise_rows(x if x.stride(1) == 1 else x.contiguous())


@quantise_wide.register_fake
def _(x):
    return x.new_empty(x.shape, dtype=FP8), x.new_empty(len(x), 1, dtype=torch.float32)


def _quantised(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return quantise_wide(x) if x.shape[1] > WIDE else rowwise_fp8(x)


@torch.library.custom_op("prefdistill::fp8_product", mutates_args=())
def fp8_product(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    low: torch.Tensor | None,
    b: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``(n, k)`` by ``(m, k)``, both e4m3 with scales of rows, plus ``low b'``.

    The CPU, which has no such product with scales for rows, multiplies in ``dtype``.
    """
    if x.device.type == "cuda":
        output = torch._scaled_mm(
            x,
            weight.t(),
            scale_a=x_scale,
            scale_b=scale.t(),
            out_dtype=dtype,
            use_fast_accum=True,
        )
    else:
        output = x.to(dtype) @ weight.to(dtype).t()
        output *= x_scale.to(dtype) * scale.to(dtype).t()
    return output if low is None else output.addmm_(low, b.t())


@fp8_product.register_fake
def _(x, x_scale, weight, scale, low, b, dtype):
    return x.new_empty(len(x), len(weight), dtype=dtype)


def to_fp8(module: nn.Linear) -> None:
    """Turn a layer's frozen weight into e4m3 with a scale for each output, in place.

    Its parameter stays as an empty one of the old dtype, which says what to compute in.
    """
    weight, scale = rowwise_fp8(module.weight.detach())
    module.weight = nn.Parameter(module.weight.new_empty(0), requires_grad=False)
    module.register_buffer("fp8_weight", weight, persistent=False)
    module.register_buffer("fp8_scale", scale, persistent=False)


def _gather_fp8(modules: Sequence[nn.Module], rank: int, has_gradient: bool) -> Tensors:
    # Not all devices concatenate fp8, so its bytes are.
    whole = torch.cat([module.fp8_weight.view(torch.uint8) for module in modules])
    weight, sizes = whole.view(FP8), [module.out_features for module in modules]
    for module, rows in zip(modules, weight.split(sizes), strict=True):
        module.fp8_weight = rows
    scale = torch.cat([module.fp8_scale for module in modules])
    tensors = {"weight": weight, "scale": scale}
    if has_gradient:  # of what the forward pass computes with, and b' below
        columns = (weight.float() * scale).t()
        columns = torch.cat([columns, columns.new_zeros(rank, columns.shape[1])])
        tensors["weight_t"], tensors["scale_t"] = rowwise_fp8(columns)
    return tensors


# NF4 by bitsandbytes, dequantised for each product and each gradient.


def _gather_nf4(modules: Sequence[nn.Module]) -> Tensors:
    tensors = {}
    for number, module in enumerate(modules):
        state, weight = _quant_state(module), module.weight.data
        packed = weight.as_subclass(torch.Tensor).view(torch.uint8)
        tensors[f"packed{number}"] = packed
        tensors[f"absmax{number}"] = state.absmax
        tensors[f"offset{number}"] = state.offset
        tensors[f"nested{number}"] = state.state2.absmax
        tensors["code"] = state.state2.code
    return tensors


def _nf4_lists(frozen: Tensors, sizes: tuple[int, ...]) -> tuple:
    numbers = range(len(sizes))
    names = ("packed", "absmax", "offset", "nested")
    lists = [[frozen[f"{name}{number}"] for number in numbers] for name in names]
    return *lists, frozen["code"]


@torch.library.custom_op("prefdistill::nf4_product", mutates_args=())
def nf4_product(
    x: torch.Tensor,
    packed: Sequence[torch.Tensor],
    absmax: Sequence[torch.Tensor],
    offset: Sequence[torch.Tensor],
    nested: Sequence[torch.Tensor],
    code: torch.Tensor,
    sizes: Sequence[int],
    low: torch.Tensor | None,
    b: torch.Tensor | None,
    transposed: bool,
) -> torch.Tensor:
    """``x W' + low b'``, or ``x W`` if transposed, with layers' NF4 weights in a row.

    One operation, so that a compiler cannot keep the dequantised weight for the
    backward pass.
    """
    n_inputs = 2 * packed[0].numel() // sizes[0]
    whole = x.new_empty(sum(sizes), n_inputs)
    for part, weight, scale, shift, scale2 in zip(
        whole.split(list(sizes)), packed, absmax, offset, nested, strict=True
    ):
        blocks = torch.ops.bitsandbytes.dequantize_blockwise.default(
            scale, scale2, code, NF4_NESTED_BLOCK, torch.float32
        )
        arguments = weight, blocks + shift, NF4_BLOCK, "nf4", list(part.shape), x.dtype
        if whole.is_cuda:
            torch.ops.bitsandbytes.dequantize_4bit.out(*arguments, out=part)
        else:
            part.copy_(torch.ops.bitsandbytes.dequantize_4bit.default(*arguments))
    output = x @ (whole if transposed else whole.t())
    return output if low is None else output.addmm_(low, b.t())


@nf4_product.register_fake
def _(x, packed, absmax, offset, nested, code, sizes, low, b, transposed):
    n_inputs = 2 * packed[0].numel() // sizes[0]
    return x.new_empty(len(x), n_inputs if transposed else sum(sizes))
