"""How far a result in low precision may be from a float32 reference, for the check at loading and for benchmarks.

The error of a row (a token's output or gradient) is relative to its norm. The allowed error is a multiple of the eps of
the dtype: bfloat16's eps is 2^-7, one rounding costs a quarter of it on average, and a backward pass also multiplies
rounded scores. Rows whose reference is not finite are not compared.
"""

from typing import Literal

import torch

from fastvec_kernels._launch import INTERPRETED

Direction = Literal["forward", "backward"]
TOLERANCE: dict[Direction, float] = {"forward": 2.0, "backward": 4.0}  # in units of eps
FLOAT32_TOLERANCE = 2e-5  # the error of float32 sums over thousands of tokens in another order
SMALL_ROW = 1 / 16  # times the rows' median norm; errors of smaller rows are relative to this
# of eps, for eight bits: both sides are rounded to them, so that only numbers between two of them differ. Triton's
# interpreter also halves numbers that round up to a power of two.
EIGHT_BITS = 1.0 if INTERPRETED else 1 / 8


def worst_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest relative error of a row. Rows are along the first axis; a vector is one row."""
    rows = (expected.flatten(1) if expected.ndim > 1 else expected[None]).float()
    result = result.detach().float().reshape(rows.shape)
    finite = rows.isfinite().all(dim=1)
    rows, result = rows[finite], result[finite]
    if len(rows) == 0:
        return 0.0
    norm = rows.norm(dim=1)
    least = SMALL_ROW * norm.median()
    error = (result - rows).norm(dim=1)
    return float((error / torch.maximum(norm, least).clamp(min=1e-30)).max())


def compare(
    result: tuple[torch.Tensor, ...],
    expected: tuple[torch.Tensor, ...],
    direction: Direction = "forward",
    rounds_to: torch.dtype = torch.float32,
) -> tuple[float, str | None]:
    """Return the worst error of floating tensors, and a description of the failure or None.

    `rounds_to` is the dtype of intermediate results, if narrower than the results'.
    """
    if [x.shape for x in result] != [x.shape for x in expected]:
        return float("nan"), f"shapes {[tuple(x.shape) for x in result]}, not {[tuple(x.shape) for x in expected]}"
    worst, failure = 0.0, None
    for x, y in zip(result, expected, strict=True):
        if x.numel() == 0:
            continue
        eps = max(torch.finfo(x.dtype).eps * (EIGHT_BITS if x.itemsize == 1 else 1), torch.finfo(rounds_to).eps)
        allowed = max(TOLERANCE[direction] * eps, FLOAT32_TOLERANCE)
        error = worst_error(x, y)
        if not error <= allowed:  # a NaN fails too
            failure = f"error {error:.2e}, allowed {allowed:.2e}"
        worst = max(worst, error) if error == error else error
    return worst, failure
