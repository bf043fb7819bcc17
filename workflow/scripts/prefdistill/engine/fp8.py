"""Store frozen weights in fp8: e4m3 with one scale a row, for ``torch._scaled_mm``.

A scale factors out of a product only if it does not vary along the summed dimension. So
the forward pass needs scales for the weight's rows (outputs), the backward pass for its
columns (inputs). Training keeps both copies, which together are as large as bf16.
"""

from collections.abc import Sequence

import torch
from torch import nn

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
FP8_STEP = 16  # fp8 products need dimensions that are multiples of this
WIDE = 8000  # a compiled kernel reads a row with more values twice to scale it


def rowwise_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise to ``(n, k)`` e4m3 and ``(n, 1)`` float32 scales: ``x = q * scale``."""
    wide = x.float()
    scale = wide.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / FP8_MAX
    return (wide / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


def rounded_up(rank: int) -> int:
    """Return how many columns LoRA of a rank takes in fp8."""
    return -(-rank // FP8_STEP) * FP8_STEP


@torch.library.custom_op("prefdistill::quantise_wide", mutates_args=())
def quantise_wide(
    x: torch.Tensor,
    low: torch.Tensor | None,
    factor: torch.Tensor | None,
    n_more: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ``rowwise_fp8`` of ``[x | factor low]``, reading it once on a GPU.

    Args:
        x: ``(n, k)``.
        low: ``(n, rank)``, or None.
        factor: ``(1,)`` float32 that ``low`` is multiplied by.
        n_more: Columns for ``low``; those beyond its rank are zero.

    Returns:
        ``(n, k + n_more)`` e4m3 and ``(n, 1)`` float32 scales.
    """
    if x.device.type == "cuda":
        from prefdistill.engine.kernels import quantise_rows

        x = x if x.stride(1) == 1 else x.contiguous()
        return quantise_rows(x, low, factor, x.shape[1] + n_more)
    if low is None:
        return rowwise_fp8(x)
    zeros = x.new_zeros(len(x), n_more - low.shape[1])
    return rowwise_fp8(torch.cat([x.float(), low.float() * factor, zeros], dim=1))


@quantise_wide.register_fake
def _(x, low, factor, n_more):
    output = x.new_empty(len(x), x.shape[1] + n_more, dtype=FP8)
    return output, x.new_empty(len(x), 1, dtype=torch.float32)


def quantised(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ``rowwise_fp8``, with our own kernel where torch's reads rows twice."""
    return quantise_wide(x, None, None, 0) if x.shape[1] > WIDE else rowwise_fp8(x)


@torch.library.custom_op("prefdistill::fp8_product", mutates_args=())
def fp8_product(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Multiply ``(n, k)`` by the transpose of ``(m, k)``, both e4m3 with row scales.

    Sums are in float32: with a GPU's fast ones (``use_fast_accum``), the losses of a
    few training steps were off by three times what rounding explains (docs/results.md).
    The CPU has no such product with row scales, so it multiplies in ``dtype``.
    """
    if x.device.type == "cuda":
        return torch._scaled_mm(
            x,
            weight.t(),
            scale_a=x_scale,
            scale_b=scale.t(),
            out_dtype=dtype,
        )
    output = x.to(dtype) @ weight.to(dtype).t()
    return output.mul_(x_scale.to(dtype) * scale.to(dtype).t())


@fp8_product.register_fake
def _(x, x_scale, weight, scale, dtype):
    return x.new_empty(len(x), len(weight), dtype=dtype)


def to_fp8(module: nn.Linear) -> None:
    """Turn a module's frozen weight into e4m3 with a scale for each output, in place.

    An empty parameter of the old dtype stays in its place: it tells what to compute in.
    """
    weight, scale = rowwise_fp8(module.weight.detach())
    module.weight = nn.Parameter(module.weight.new_empty(0), requires_grad=False)
    module.register_buffer("fp8_weight", weight, persistent=False)
    module.register_buffer("fp8_scale", scale, persistent=False)


def gather_fp8(
    modules: Sequence[nn.Module], rank: int, has_gradient: bool
) -> dict[str, torch.Tensor]:
    """Gather the weights of fp8 modules for ``frozen.gather``; theirs become views."""
    sizes, n_inputs = [m.out_features for m in modules], modules[0].in_features
    n_more = rounded_up(rank)
    weight = modules[0].fp8_weight.new_zeros(sum(sizes), n_inputs + n_more)
    for module, rows in zip(modules, weight.split(sizes), strict=True):
        rows[:, :n_inputs] = module.fp8_weight
        module.fp8_weight = rows[:, :n_inputs]
    scale = torch.cat([module.fp8_scale for module in modules])
    tensors = {"weight": weight, "scale": scale}
    if rank:
        tensors["factor"] = scale.new_ones(1)
    # The copy for gradients is made from the rounded weight, so that both passes use
    # the same values. Its last rows are b'.
    if has_gradient:
        columns = (weight.float() * scale).t().contiguous()
        tensors["weight_t"], tensors["scale_t"] = rowwise_fp8(columns)
    return tensors


def put_fp8(frozen: dict[str, torch.Tensor], b: torch.Tensor) -> None:
    """Store LoRA's scaled ``b``, ``(out, rank)``, beside the weight.

    ``b`` takes the scales of the weight's rows; in the copy for gradients, it has its
    own scales. Where ``b`` is larger than its row's scale allows, it is divided by a
    factor, and products multiply ``low`` by the same factor.
    """
    rank = b.shape[1]
    first = frozen["weight"].shape[1] - rounded_up(rank)
    values = b.float() / frozen["scale"]
    factor = (values.abs().max() / FP8_MAX).clamp(min=1.0)
    frozen["factor"].copy_(factor)
    values = (values / factor).clamp(-FP8_MAX, FP8_MAX)
    frozen["weight"][:, first : first + rank] = values.to(FP8)
    if "weight_t" in frozen:
        below, scale = rowwise_fp8(b.t())
        frozen["weight_t"][first : first + rank] = below
        frozen["scale_t"][first : first + rank] = scale
