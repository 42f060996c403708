"""Row-wise FP8 quantization: each row is divided by its own scale and rounded to E4M3 (4 exponent, 3 mantissa bits).

    s_t = max_d |x_td| / 448, y_td = e4m3(x_td / s_t)

Each row has its own scale, so its result does not depend on the other rows. The kernel makes one pass over the rows,
PyTorch operations make three.

Shapes: T rows, D their width.
"""

import torch

from fastvec_kernels._launch import architecture, ceil_div, launch, tl, triton
from fastvec_kernels._switch import op, uses_kernel
from fastvec_kernels.rms_norm import WIDEST, forward_tile, rows_of

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # the largest number of E4M3
LEAST = 1e-30  # lower bound of a row's maximum: a row of zeros needs a positive scale


def quantize_rows_reference(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reference implementation, in float32."""
    wide = x.float()
    largest = wide.abs().amax(dim=1).clamp_min(LEAST)
    return (wide * (LARGEST / largest)[:, None]).to(E4M3), largest / LARGEST


@op("quantize_rows", quantize_rows_reference)
def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize `x` [T, D] -> E4M3 [T, D] and the float32 scales [T] that its rows were divided by.

    Raises ValueError if `x` is not two-dimensional or D is 0.
    """
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"quantize_rows needs x [T, D], got {tuple(x.shape)}")
    kernel = uses_kernel("quantize_rows", x) and architecture(x.device) in ("sm_90", "sm_100")
    if not (kernel and len(x) and x.shape[1] <= WIDEST):
        return quantize_rows_reference(x)
    x = rows_of(x)
    T, D = x.shape
    y, scales = x.new_empty(T, D, dtype=E4M3), x.new_empty(T, dtype=torch.float32)
    rows, block_d, warps = forward_tile(D)
    sizes = {"D": D, "ROWS": rows, "BLOCK_D": block_d, "LARGEST": LARGEST, "LEAST": LEAST}
    launch(_quantize_kernel, (ceil_div(T, rows),), x, y, scales, x.stride(0), T, **sizes, num_warps=warps)
    return y, scales


@triton.jit(do_not_specialize=["T"])
def _quantize_kernel(
    x_ptr, y_ptr, scales_ptr, stride, T,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, LARGEST: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)  # T · D may exceed 2^31
    cols = tl.arange(0, BLOCK_D)[None, :]
    inside = (row < T)[:, None] & (cols < D)
    x = tl.load(x_ptr + row[:, None] * stride + cols, mask=inside, other=0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(x), axis=1), LEAST)
    tl.store(scales_ptr + row, largest / LARGEST, mask=row < T)
    y = (x * (LARGEST / largest)[:, None]).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + row[:, None] * D + cols, y, mask=inside)
