"""A Triton kernel that quantises rows to fp8, reading them once.

Imported on a GPU alone. A compiler's own kernels read a row twice: for its largest
value, and to scale it.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _quantise(x, output, scales, n_columns, x_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < n_columns
    values = tl.load(x + row * x_stride + columns, mask=inside, other=0.0)
    values = values.to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values), axis=0), 1e-12) / 448.0
    tl.store(scales + row, scale)
    quantised = tl.clamp(values / scale, -448.0, 448.0).to(tl.float8e4nv)
    tl.store(output + row * n_columns + columns, quantised, mask=inside)


def quantise_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``frozen.rowwise_fp8`` of ``(n, k)``, whose columns lie side by side."""
    n_rows, n_columns = x.shape
    output = torch.empty(n_rows, n_columns, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(n_rows, 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(n_columns)
    warps = min(32, max(4, block // 1024))
    _quantise[(n_rows,)](
        x, output, scales, n_columns, x.stride(0), BLOCK=block, num_warps=warps
    )
    return output, scales
