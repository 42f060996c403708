from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from fastvec_kernels import (
    add_rms_norm_fp8,
    gated_fp8,
    quantize_rows,
    quantize_rows_reference,
    rms_norm_fp8,
    rms_norm_reference,
)
from fastvec_kernels._launch import INTERPRETED, tl, triton
from fastvec_kernels.swiglu import geglu_reference, swiglu_reference

pytestmark = [  # from NumPy, in the interpreter: infinity times zero, and a sigmoid that is 1 / (1 + inf)
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning"),
]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@triton.jit  # type: ignore[untyped-decorator]
def convert(x_ptr: Any, y_ptr: Any, size: Any, BLOCK: tl.constexpr) -> None:
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + place, tl.load(x_ptr + place, mask=place < size).to(tl.float8e4nv), mask=place < size)


def settled(x: torch.Tensor) -> torch.Tensor:
    """Mask the entries of `x` that have one result, even if a kernel's x or its quotient is rounded differently.

    In Triton's interpreter these are only those that it converts as PyTorch does: it halves numbers that round up to a
    power of two, rounds ties up, and gets numbers near zero wrong.
    """
    scaled = x.float() / quantize_rows_reference(x)[1][:, None]
    expected = scaled.to(torch.float8_e4m3fn).float()
    right = torch.ones_like(x, dtype=torch.bool)
    for near in (scaled * (1 - 1e-5), scaled, scaled * (1 + 1e-5)):
        rounded = near.to(torch.float8_e4m3fn)
        right &= rounded.float() == expected
        if INTERPRETED and not x.is_cuda:
            found = torch.empty_like(rounded)
            convert[(-(-x.numel() // 1024),)](near.contiguous(), found, x.numel(), BLOCK=1024)
            right &= found.float() == expected
    return right


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 100), (3, 4097)])
def test_it_is_the_definition(device: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = torch.randn(shape, device=device).to(dtype) * 30
    y, scales = quantize_rows(x)
    expected, expected_scales = quantize_rows_reference(x)
    assert y.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(scales, expected_scales, rtol=1e-6, atol=0)
    assert settled(x).float().mean() > 0.7  # at least: the interpreter gets one in 16 wrong, and ties are rare
    assert torch.equal(y.float()[settled(x)], expected.float()[settled(x)])


def test_a_row_is_found_again_to_three_bits(device: str) -> None:
    x = torch.randn(50, 256, device=device)
    y, scales = quantize_rows(x)
    found = y.float() * scales[:, None]
    near = (found - x).abs() <= x.abs() * 2**-4 + scales[:, None] * 2**-10 * 1.01
    assert near[settled(x)].all()


def test_a_row_does_not_depend_on_its_neighbours(device: str) -> None:
    x = torch.randn(5, 64, device=device)
    alone, scale = quantize_rows(x[2:3])
    x[3] *= 1e4
    together, scales = quantize_rows(x)
    assert torch.equal(alone.float()[0], together.float()[2])
    assert scale[0] == scales[2]


def test_zeros_stay_zeros_and_infinity_does_not_become_a_number(device: str) -> None:
    x = torch.zeros(2, 8, device=device)
    x[1, 3] = float("inf")
    y, scales = quantize_rows(x)
    assert torch.equal(y.float()[0], torch.zeros(8, device=device))
    assert scales[0] > 0
    assert not (y.float() * scales[:, None]).isfinite()[1].all()


def test_rows_may_have_a_stride(device: str) -> None:
    wide = torch.randn(6, 40, device=device)
    y, _ = quantize_rows(wide[:, 8:24])
    assert torch.equal(y.float(), quantize_rows(wide[:, 8:24].contiguous())[0].float())


@pytest.mark.parametrize("shape", [(3,), (2, 0)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"needs x \[T, D\]"):
        quantize_rows(torch.zeros(shape))


FUSED: dict[str, tuple[Callable[..., Any], Callable[[torch.Tensor], torch.Tensor]]] = {
    "rms_norm": (
        lambda x: rms_norm_fp8(x, torch.ones_like(x[0]), 1e-5),
        lambda x: rms_norm_reference(x, torch.ones_like(x[0]), 1e-5),
    ),
    "add_rms_norm": (
        lambda x: add_rms_norm_fp8(x, x, torch.ones_like(x[0]), 1e-5)[:2],
        lambda x: rms_norm_reference(2 * x, torch.ones_like(x[0]), 1e-5),
    ),
    "swiglu": (partial(gated_fp8, activation="silu"), swiglu_reference),
    "geglu": (partial(gated_fp8, activation="gelu_tanh"), geglu_reference),
    "geglu-none": (partial(gated_fp8, activation="gelu"), partial(geglu_reference, approximate="none")),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (7, 100), (3, 4098)])
@pytest.mark.parametrize("name", FUSED)
def test_rows_quantized_at_once_are_those_of_the_op(
    device: str, name: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    wide = torch.randn(shape[0], 3 * shape[1], device=device).to(dtype) * 3
    x = wide[:, shape[1] : 2 * shape[1]]  # rows with a stride
    fused, reference = FUSED[name]
    y = reference(x.double()).float()  # where the tail of GELU cancels, float32 loses digits
    values, scales = fused(x)
    expected, expected_scales = quantize_rows_reference(y)
    assert values.dtype == torch.float8_e4m3fn
    # without a kernel, y is rounded to the dtype in between
    rounding = max(float(torch.finfo(dtype).eps), 1e-5)
    torch.testing.assert_close(scales, expected_scales, rtol=rounding, atol=0)
    found, wanted = (one.float()[settled(y)] for one in (values, expected))
    torch.testing.assert_close(found, wanted, rtol=2**-3, atol=2**-8)
    assert len(found) < 100 or (found == wanted).float().mean() > 0.9


def test_the_sum_and_its_quantized_norm_come_together(device: str) -> None:
    x, residual = torch.randn(2, 5, 64, device=device).half()
    weight = torch.randn(64, device=device)
    values, scales, total = add_rms_norm_fp8(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    y = rms_norm_reference(total.float(), weight, 1e-5)
    near = (values.float() * scales[:, None] - y).abs() <= y.abs() * 2**-3.9 + scales[:, None] * 2**-9
    assert near[settled(y)].all()
