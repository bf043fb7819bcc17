"""Store frozen weights in fp8: e4m3 with one scale per row, for ``torch._scaled_mm``.

A scale factors out of a product only if it is constant along the summed dimension. So
the forward pass needs one scale per row of the weight (output), the backward pass one
per column (input). Training keeps both copies, which together are as large as bf16.
"""

from collections.abc import Sequence

import torch
from torch import nn

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
FP8_STEP = 16  # dimensions of fp8 products must be multiples of this
WIDE = 8000  # to scale a row with more values, torch's compiled kernel reads it twice


def rowwise_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise rows to e4m3, so that ``x = q * scale``.

    Args:
        x: ``(n, k)`` float.

    Returns:
        ``(n, k)`` e4m3 and ``(n, 1)`` float32 scales.
    """
    wide = x.float()
    scale = wide.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / FP8_MAX
    return (wide / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


def rounded_up(rank: int) -> int:
    """Return the number of columns that LoRA of a rank takes in fp8."""
    return -(-rank // FP8_STEP) * FP8_STEP


@torch.library.custom_op("prefdistill::quantise_wide", mutates_args=())
def quantise_wide(
    x: torch.Tensor,
    low: torch.Tensor | None,
    factor: torch.Tensor | None,
    n_more: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ``rowwise_fp8`` of ``[x | factor low]``; a GPU reads the input once.

    Args:
        x: ``(n, k)``.
        low: ``(n, rank)``, or None.
        factor: ``(1,)`` float32 factor of ``low``.
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
    """Compute ``rowwise_fp8``, with our own kernel if torch's would read rows twice."""
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

    Args:
        x: ``(n, k)`` e4m3.
        x_scale: ``(n, 1)`` float32.
        weight: ``(m, k)`` e4m3.
        scale: ``(m, 1)`` float32.
        dtype: Dtype of the result.

    Returns:
        ``(n, m)``.
    """
    if x.device.type == "cuda":
        # Without `use_fast_accum`: with it, the losses of a few training steps were off
        # by three times the error that rounding explains.
        return torch._scaled_mm(
            x,
            weight.t(),
            scale_a=x_scale,
            scale_b=scale.t(),
            out_dtype=dtype,
        )
    # The CPU has no fp8 product with row scales.
    output = x.to(dtype) @ weight.to(dtype).t()
    return output.mul_(x_scale.to(dtype) * scale.to(dtype).t())


@fp8_product.register_fake
def _(x, x_scale, weight, scale, dtype):
    return x.new_empty(len(x), len(weight), dtype=dtype)


def to_fp8(module: nn.Linear) -> None:
    """Quantise a module's frozen weight to e4m3 with one scale per output, in place."""
    weight, scale = rowwise_fp8(module.weight.detach())
    # An empty parameter stays, as its dtype says what to compute in.
    module.weight = nn.Parameter(module.weight.new_empty(0), requires_grad=False)
    module.register_buffer("fp8_weight", weight, persistent=False)
    module.register_buffer("fp8_scale", scale, persistent=False)


def gather_fp8(
    modules: Sequence[nn.Module], rank: int, has_gradient: bool
) -> dict[str, torch.Tensor]:
    """Gather fp8 modules' weights for ``frozen.gather``; theirs become views.

    Args:
        modules: Modules that read the same input.
        rank: Sum of the ranks of their LoRA.
        has_gradient: Whether gradients will pass through them.
    """
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
    # The copy for gradients is quantised from the rounded weight, so that both passes
    # use nearly the same values. Its last rows hold b'.
    if has_gradient:
        columns = (weight.float() * scale).t().contiguous()
        tensors["weight_t"], tensors["scale_t"] = rowwise_fp8(columns)
    return tensors


def put_fp8(frozen: dict[str, torch.Tensor], b: torch.Tensor) -> None:
    """Store LoRA's ``b`` beside the weight, in place.

    Args:
        frozen: From ``gather_fp8``.
        b: ``(out, rank)``, scaled by ``alpha / r``.
    """
    # In the forward pass, b shares the scales of the weight's rows. If it exceeds the
    # range that a scale allows, it is divided by a factor, and products multiply `low`
    # by the same factor. In the copy for gradients, b has scales of its own.
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
