"""Bound attention scores inside FlexAttention's kernels.

A bounded score is ``bound * tanh(score / bound)``. CUDA's library computes tanh in many
instructions. NVIDIA GPUs since Turing have one instruction for it, with a relative
error of at most 2^-11. Rounding queries and keys to 16 bits changes a score by more.
"""

from collections.abc import Callable
from functools import cache, partial

import torch

ASSEMBLY = "tanh.approx.f32 $0, $1;"


@cache
def soft_cap(bound: float, quick: bool) -> Callable:
    """Return FlexAttention's score modification for a bound.

    It is cached, as a new function object would make torch compile the kernels again.

    Args:
        bound: Bound of the scores.
        quick: From ``has_quick_tanh``. Without it, ``tanh(x)`` is computed as
            ``2 sigmoid(2x) - 1``, in fewer instructions than CUDA's tanh.
    """

    def capped(score, _batch, _head, _query, _key):
        if quick:
            return bound * _Tanh.apply(score / bound)
        return bound * (2 * torch.sigmoid(score * (2 / bound)) - 1)

    return capped


def has_quick_tanh(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether a GPU has the instruction, and it is exact enough for the dtype.

    Call this before torch compiles a kernel that uses the instruction: it registers the
    instruction with the compiler.
    """
    if device.type != "cuda" or torch.version.hip or dtype.itemsize > 2:
        return False
    is_there = torch.cuda.get_device_capability(device) >= (7, 5)
    if is_there:
        _teach_compiler()
    return is_there


@torch.library.custom_op("prefdistill::quick_tanh", mutates_args=())
def quick_tanh(x: torch.Tensor) -> torch.Tensor:
    """Compute ``tanh``; compiled kernels use the instruction in ``ASSEMBLY``."""
    return torch.tanh(x)


@quick_tanh.register_fake
def _(x):
    return torch.empty_like(x)


class _Tanh(torch.autograd.Function):
    """Give ``quick_tanh`` a derivative, in a form that FlexAttention can map."""

    @staticmethod
    def forward(x):
        return quick_tanh(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, gradient):
        (value,) = ctx.saved_tensors
        return gradient * (1 - value * value)

    @staticmethod
    def vmap(info, in_dims, x):
        return _Tanh.apply(x), in_dims[0]


@cache
def _teach_compiler() -> None:
    """Make torch's compiler replace ``quick_tanh`` by ``ASSEMBLY`` in kernels."""
    from torch._inductor.lowering import make_pointwise, register_lowering
    from torch._inductor.virtualized import ops

    in_kernel = partial(ops.inline_asm_elementwise, asm=ASSEMBLY)
    register_lowering(torch.ops.prefdistill.quick_tanh)(
        lambda x: make_pointwise(in_kernel)(x)
    )
