"""The bound of Gemma-2's attention scores inside FlexAttention's kernels.

``bound * tanh(score / bound)``. A GPU's tanh as CUDA's library has it takes many
instructions for each score. Cards of NVIDIA since Turing have one that does it, off by
2^-11 of the result at most: less than rounding queries and keys to 16 bits does to a
score, and what flash-attn takes too.
"""

from collections.abc import Callable
from functools import cache, partial

import torch

ASSEMBLY = "tanh.approx.f32 $0, $1;"


@cache
def soft_cap(bound: float, quick: bool) -> Callable:
    """A score modification; the same for the same bound, as another compiles anew.

    Args:
        bound: Of the scores.
        quick: From ``has_quick_tanh``; else ``tanh(x)`` is ``2 sigmoid(2x) - 1``, which
            takes fewer instructions than the library's.
    """

    def capped(score, _batch, _head, _query, _key):
        if quick:
            return bound * _Tanh.apply(score / bound)
        return bound * (2 * torch.sigmoid(score * (2 / bound)) - 1)

    return capped


def has_quick_tanh(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a GPU has the instruction, and 16-bit queries leave it exact enough.

    Torch's compiler then knows it too, so ask before it is at work.
    """
    if device.type != "cuda" or torch.version.hip or dtype.itemsize > 2:
        return False
    is_there = torch.cuda.get_device_capability(device) >= (7, 5)
    if is_there:
        _teach_compiler()
    return is_there


@torch.library.custom_op("prefdistill::quick_tanh", mutates_args=())
def quick_tanh(x: torch.Tensor) -> torch.Tensor:
    """``tanh``, for which a compiled kernel takes ``ASSEMBLY``."""
    return torch.tanh(x)


@quick_tanh.register_fake
def _(x):
    return torch.empty_like(x)


class _Tanh(torch.autograd.Function):
    """``quick_tanh`` with its derivative, as FlexAttention can map over scores."""

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
    """Tell torch's compiler what ``quick_tanh`` is in a kernel."""
    from torch._inductor.lowering import make_pointwise, register_lowering
    from torch._inductor.virtualized import ops

    in_kernel = partial(ops.inline_asm_elementwise, asm=ASSEMBLY)
    register_lowering(torch.ops.prefdistill.quick_tanh)(
        lambda x: make_pointwise(in_kernel)(x)
    )
