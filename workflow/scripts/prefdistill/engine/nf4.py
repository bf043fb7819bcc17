"""Multiply by NF4 weights of bitsandbytes, which each product dequantises."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

NF4_BLOCK = 64
# The blocks' absolute maxima are quantised too, in blocks of this size ("double
# quantisation").
NF4_NESTED_BLOCK = 256


def quant_state(module: nn.Module) -> Any:
    """Return bitsandbytes' description of an NF4 weight, or None."""
    own = getattr(getattr(module, "weight", None), "quant_state", None)
    return own or getattr(module, "quant_state", None)


def is_known(state: Any) -> bool:
    """Tell whether a weight is stored in the form that this module can read.

    Args:
        state: From ``quant_state``.
    """
    nested = state.nested and state.state2.blocksize == NF4_NESTED_BLOCK
    return state.quant_type == "nf4" and state.blocksize == NF4_BLOCK and nested


def gather_nf4(modules: Sequence[nn.Module]) -> dict[str, torch.Tensor]:
    """Collect NF4 modules' weights for ``frozen.gather``, without copying them."""
    tensors = {}
    for number, module in enumerate(modules):
        state, weight = quant_state(module), module.weight.data
        packed = weight.as_subclass(torch.Tensor).view(torch.uint8)
        tensors[f"packed{number}"] = packed
        tensors[f"absmax{number}"] = state.absmax
        tensors[f"offset{number}"] = state.offset
        tensors[f"nested{number}"] = state.state2.absmax
        tensors["code"] = state.state2.code
    return tensors


def nf4_lists(frozen: dict[str, torch.Tensor], sizes: Sequence[int]) -> tuple:
    """Return a group's tensors as the arguments that ``nf4_product`` takes.

    Args:
        frozen: From ``gather_nf4``.
        sizes: Number of outputs of each module.
    """
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
    """Compute ``x W' + low b'``, or ``x W`` if transposed, with stacked NF4 weights.

    torch's compiler sees one operation, so it cannot keep the dequantised weight for
    the backward pass.

    Args:
        x: ``(n, in)``, or ``(n, out)`` if transposed.
        packed: Bytes of each module's weight, two values per byte, uint8.
        absmax: Quantised maxima of each weight's blocks, uint8.
        offset: Mean of each weight's maxima.
        nested: Scales of the quantised maxima, float32.
        code: The values that quantised maxima stand for, float32.
        sizes: Number of outputs of each module.
        low: ``(n, rank)``, or None.
        b: ``(out, rank)``, or None.
        transposed: Whether to multiply by ``W`` and not by ``W'``.

    Returns:
        ``(n, out)``, or ``(n, in)`` if transposed, in the dtype of ``x``.
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
