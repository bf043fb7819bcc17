"""Quantise rows and compute gated MLPs with Triton kernels that read wide rows once.

Kernels of torch's compiler read them twice. This module is imported only on a GPU.
``fp8`` and ``gated`` define the same functions in PyTorch.
"""

import torch
import triton
import triton.language as tl

GATE_BLOCK = 1024  # values that one program of a gate's kernel computes


@triton.jit
def _quantise(
    x, low, factor, output, scales,
    n_columns, n_low, n_output, x_stride, low_stride,
    BLOCK: tl.constexpr, LOW_BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < n_columns
    values = tl.load(x + row * x_stride + columns, mask=inside, other=0.0)
    values = values.to(tl.float32)
    largest = tl.max(tl.abs(values), axis=0)
    if LOW_BLOCK:
        low_columns = tl.arange(0, LOW_BLOCK)
        place = low + row * low_stride + low_columns
        lows = tl.load(place, mask=low_columns < n_low, other=0.0)
        lows = lows.to(tl.float32) * tl.load(factor)
        largest = tl.maximum(largest, tl.max(tl.abs(lows), axis=0))
    scale = tl.maximum(largest, 1e-12) / 448.0
    tl.store(scales + row, scale)
    quantised = tl.clamp(values / scale, -448.0, 448.0).to(tl.float8e4nv)
    tl.store(output + row * n_output + columns, quantised, mask=inside)
    if LOW_BLOCK:
        quantised = tl.clamp(lows / scale, -448.0, 448.0).to(tl.float8e4nv)
        place = output + row * n_output + n_columns + low_columns
        tl.store(place, quantised, mask=low_columns < n_output - n_columns)


def quantise_rows(
    x: torch.Tensor,
    low: torch.Tensor | None,
    factor: torch.Tensor | None,
    n_output: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ``fp8.quantise_wide`` on the GPU.

    Args:
        x: ``(n, k)``, contiguous within rows.
        low: ``(n, rank)``, contiguous within rows, or None.
        factor: ``(1,)`` float32 factor of ``low``.
        n_output: Columns of the result; those beyond ``k + rank`` are zero.

    Returns:
        ``(n, n_output)`` e4m3 and ``(n, 1)`` float32 scales.
    """
    n_rows, n_columns = x.shape
    output = torch.empty(n_rows, n_output, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(n_rows, 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(n_columns)
    n_low = 0 if low is None else low.shape[1]
    n_more = n_output - n_columns
    _quantise[(n_rows,)](
        x, x if low is None else low, x if low is None else factor, output, scales,
        n_columns, n_low, n_output, x.stride(0), 0 if low is None else low.stride(0),
        BLOCK=block, LOW_BLOCK=triton.next_power_of_2(n_more) if n_more else 0,
        num_warps=min(32, max(4, block // 1024)),
    )  # fmt: skip
    return output, scales


@triton.jit
def _activation(x, IS_GELU: tl.constexpr):
    """Return an activation's value and derivative, in float32."""
    if IS_GELU:  # (1 + tanh(u)) / 2 = sigmoid(2 u)
        square = x * x
        twice = 1.5957691216057308 * x * (1.0 + 0.044715 * square)
        slope = 1.5957691216057308 * (1.0 + 0.134145 * square)
    else:
        twice, slope = x, 1.0
    share = tl.sigmoid(twice)
    return x * share, share * (1.0 + x * (1.0 - share) * slope)


@triton.jit
def _gate(
    gate_up, output, n_columns, output_stride,
    IS_GELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n_columns
    place = gate_up + row * 2 * n_columns + columns
    gate = tl.load(place, mask=inside).to(tl.float32)
    up = tl.load(place + n_columns, mask=inside).to(tl.float32)
    value, _ = _activation(gate, IS_GELU)
    place = output + row * output_stride + columns
    tl.store(place, (value * up).to(output.dtype.element_ty), mask=inside)


def gate_rows(gate_up: torch.Tensor, output: torch.Tensor, activation: str) -> None:
    """Compute ``gated.gate`` on the GPU.

    Args:
        gate_up: ``(n, 2 m)``, contiguous.
        output: ``(n, m)``, contiguous within rows; overwritten.
        activation: ``silu`` or ``gelu_pytorch_tanh``.
    """
    n_rows, n_columns = output.shape
    _gate[(n_rows, triton.cdiv(n_columns, GATE_BLOCK))](
        gate_up, output, n_columns, output.stride(0),
        IS_GELU=activation != "silu", BLOCK=GATE_BLOCK,
    )  # fmt: skip


@triton.jit
def _gate_backward(
    gradient, more, gate_up, gate_up_gradient, gated,
    n_columns, gradient_stride,
    HAS_MORE: tl.constexpr, IS_GELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n_columns
    here = row * 2 * n_columns + columns
    gate = tl.load(gate_up + here, mask=inside).to(tl.float32)
    up = tl.load(gate_up + here + n_columns, mask=inside).to(tl.float32)
    total = tl.load(gradient + row * gradient_stride + columns, mask=inside)
    total = total.to(tl.float32)
    value, slope = _activation(gate, IS_GELU)
    dtype = gate_up_gradient.dtype.element_ty
    if HAS_MORE:
        place = row * n_columns + columns
        total += tl.load(more + place, mask=inside).to(tl.float32)
        tl.store(gated + place, (value * up).to(dtype), mask=inside)
    place = gate_up_gradient + here
    tl.store(place, (total * up * slope).to(dtype), mask=inside)
    tl.store(place + n_columns, (total * value).to(dtype), mask=inside)


def gate_backward_rows(
    gradient: torch.Tensor,
    more: torch.Tensor | None,
    gate_up: torch.Tensor,
    activation: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute ``gated.gate_backward`` on the GPU.

    Args:
        gradient: ``(n, m)``, contiguous within rows.
        more: ``(n, m)``, contiguous, or None.
        gate_up: ``(n, 2 m)``, contiguous.
        activation: ``silu`` or ``gelu_pytorch_tanh``.

    Returns:
        ``(n, 2 m)`` and ``(n, m)``; the second is empty without ``more``.
    """
    n_rows, n_columns = gradient.shape
    gate_up_gradient = torch.empty_like(gate_up)
    has_more = more is not None
    gated = gate_up.new_empty(n_rows, n_columns if has_more else 0)
    _gate_backward[(n_rows, triton.cdiv(n_columns, GATE_BLOCK))](
        gradient, more if has_more else gradient, gate_up, gate_up_gradient, gated,
        n_columns, gradient.stride(0),
        HAS_MORE=has_more, IS_GELU=activation != "silu", BLOCK=GATE_BLOCK,
    )  # fmt: skip
    return gate_up_gradient, gated
