from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvec_kernels import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from fastvec_kernels.quantize import row_tile
from fastvec_kernels.rms_norm import (
    _add_rms_norm,
    _rms_norm,
    _rms_norm_backward,
    backward_tile,
    gradient_programs,
)
from tests.kernels import examples

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
sizes = {
    "T": st.sampled_from([1, 2, 63, 100]),
    "D": st.sampled_from([1, 8, 63, 100, 128, 896, 1024, 2560, 4095]),
    "dtype": st.sampled_from(DTYPES),
    "weight_dtype": st.sampled_from(DTYPES),
    "seed": st.integers(0, 999),
}


def surrounded(x: torch.Tensor) -> torch.Tensor:
    """Return `x` [T, D] as a slice of a larger buffer full of NaN."""
    T, D = x.shape
    buffer = torch.full((T + 2, D + 16), torch.nan, dtype=x.dtype, device=x.device)
    buffer[1:-1, 8:-8] = x
    return buffer[1:-1, 8:-8]


def transformers_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Round where LlamaRMSNorm does: before and after multiplying by the weight."""
    wide = x.float()
    normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    return (weight.to(x.dtype) * normed).to(x.dtype)


def assert_no_worse(found: torch.Tensor, expected: torch.Tensor, same_precision: torch.Tensor) -> None:
    """Check for at most twice the error of PyTorch in the same precision, plus one rounding of the largest entry."""
    assert found.shape == expected.shape
    rounding = max(torch.finfo(found.dtype).eps, 2e-6) * expected.abs().max()
    error, allowed = (found.float() - expected).abs().max(), (same_precision.float() - expected).abs().max()
    assert error <= 2 * allowed + rounding


def gradients(op: Callable[..., Any], tensors: list[torch.Tensor], upstream: list[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    outputs = op(*leaves, eps=1e-5)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = torch.autograd.grad(outputs, leaves, [g.to(y.dtype) for g, y in zip(upstream, outputs, strict=True)])
    return list(found)


@given(**sizes)
@settings(max_examples=examples(25))
def test_rms_norm_is_as_exact_as_pytorch(
    T: int, D: int, dtype: torch.dtype, weight_dtype: torch.dtype, seed: int, device: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = surrounded((3 * torch.randn(T, D, generator=generator)).to(device, dtype))
    weight = torch.randn(D, generator=generator).to(device, weight_dtype)
    y = rms_norm(x, weight, eps=1e-5)
    assert y.dtype == dtype
    assert_no_worse(y, rms_norm_reference(x.float(), weight.float(), 1e-5), transformers_rms_norm(x, weight, 1e-5))
    assert torch.equal(y, rms_norm(x, weight, eps=1e-5))


@given(**sizes)
@settings(max_examples=examples(25))
def test_add_rms_norm_is_the_norm_of_the_rounded_sum(
    T: int, D: int, dtype: torch.dtype, weight_dtype: torch.dtype, seed: int, device: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, residual = (surrounded(torch.randn(T, D, generator=generator).to(device, dtype)) for _ in range(2))
    weight = torch.randn(D, generator=generator).to(device, weight_dtype)
    y, total = add_rms_norm(x, residual, weight, eps=1e-5)
    assert (y.dtype, total.dtype) == (dtype, dtype)
    assert_no_worse(total, x.float() + residual.float(), x + residual)
    # from the returned total: Triton's interpreter truncates to bfloat16, whereas a GPU rounds
    expected = rms_norm_reference(total.float(), weight.float(), 1e-5)
    assert_no_worse(y, expected, transformers_rms_norm(total, weight, 1e-5))


# without D = 1, where dx is a difference of equal numbers
@given(**(sizes | {"D": st.sampled_from([8, 63, 100, 896, 1024, 2560])}), backward_of_total=st.booleans())
@settings(max_examples=examples(25))
def test_gradients_are_as_exact_as_pytorch(
    T: int, D: int, dtype: torch.dtype, weight_dtype: torch.dtype, seed: int, backward_of_total: bool, device: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, residual, dy, dtotal = (surrounded(torch.randn(T, D, generator=generator).to(device, dtype)) for _ in range(4))
    weight = torch.randn(D, generator=generator).to(device, weight_dtype)
    dtotal = dtotal if backward_of_total else torch.zeros_like(dtotal)

    def in_transformers(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> Any:
        total = x + residual
        return transformers_rms_norm(total, weight, eps), total

    tensors = [x, residual, weight]
    found = gradients(add_rms_norm, tensors, [dy, dtotal])
    total = add_rms_norm(x, residual, weight, eps=1e-5)[1]
    rounded = [total, torch.zeros_like(total), weight]  # at the returned total, as above
    expected = gradients(add_rms_norm_reference, [tensor.float() for tensor in rounded], [dy, dtotal])
    same_precision = gradients(in_transformers, rounded, [dy, dtotal])
    for tensor, *three in zip(tensors, found, expected, same_precision, strict=True):
        assert three[0].dtype == tensor.dtype
        assert_no_worse(*three)
    again = gradients(add_rms_norm, tensors, [dy, dtotal])
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_a_weight_without_gradient_changes_no_other_gradient(device: str) -> None:
    x, dy, weight = torch.randn(70, 100, device=device), torch.randn(70, 100, device=device), torch.rand(100)
    weight = weight.to(device)
    frozen = gradients(lambda x, eps: rms_norm(x, weight, eps), [x], [dy])
    torch.testing.assert_close(frozen[0], gradients(rms_norm, [x, weight], [dy])[0], rtol=1e-6, atol=1e-6)


def test_a_gradient_that_is_one_number_everywhere_arrives(device: str) -> None:
    """The gradient of a sum is an expanded tensor with strides of 0."""
    x = torch.randn(3, 100, device=device, requires_grad=True)
    weight = torch.rand(100, device=device, requires_grad=True)
    found = torch.autograd.grad(rms_norm(x, weight, 1e-5).sum(), [x, weight])
    expected = torch.autograd.grad(rms_norm_reference(x, weight, 1e-5).sum(), [x, weight])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op", [rms_norm, rms_norm_reference])
def test_the_definition_on_numbers_worked_by_hand(op: Callable[..., torch.Tensor], device: str) -> None:
    x = torch.tensor([[1.0, 7.0], [-6.0, 8.0], [0.0, 0.0]], device=device)
    y = op(x, torch.tensor([10.0, 20.0], device=device), eps=1e-12)
    torch.testing.assert_close(y.cpu(), torch.tensor([[2.0, 28.0], [-8.4852814, 22.6274170], [0.0, 0.0]]))


def test_no_tokens_give_no_rows(device: str) -> None:
    x, weight = torch.ones(0, 8, device=device), torch.ones(8, device=device)
    assert rms_norm(x, weight, 1e-5).shape == (0, 8)
    assert [out.shape for out in add_rms_norm(x, x, weight, 1e-5)] == [(0, 8), (0, 8)]


def test_the_references_gradients_are_right() -> None:
    x, residual = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm_reference(x, weight, 1e-5), (x, weight))
    assert torch.autograd.gradcheck(
        lambda x, residual, weight: add_rms_norm_reference(x, residual, weight, 1e-5), (x, residual, weight)
    )


@pytest.mark.usefixtures("only_kernels")
def test_the_custom_operators_are_well_formed(device: str) -> None:
    x, residual = (torch.randn(5, 24, device=device, requires_grad=True) for _ in range(2))
    weight = torch.rand(24, device=device, requires_grad=True)
    torch.library.opcheck(_rms_norm, (x, weight, 1e-5))
    torch.library.opcheck(_add_rms_norm, (x, residual, weight, 1e-5))
    for with_weight in (True, False):
        arguments = (x.detach(), x.detach(), weight.detach(), residual.detach(), 1e-5, with_weight)
        torch.library.opcheck(_rms_norm_backward, arguments)


def test_compiled_forward_and_backward_give_the_same(device: str) -> None:
    x, residual, dy, dtotal = (torch.randn(9, 40, device=device) for _ in range(4))
    weight = torch.rand(40, device=device)
    compiled = torch.compile(add_rms_norm, fullgraph=True, backend="aot_eager")
    assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)
    assert_equal(compiled(x, residual, weight, 1e-5), add_rms_norm(x, residual, weight, 1e-5))
    found, expected = (gradients(op, [x, residual, weight], [dy, dtotal]) for op in (compiled, add_rms_norm))
    assert_equal(found, expected)


@pytest.mark.parametrize("D", [1, 100, 1024, 2560, 8192, 32_768])
def test_a_program_holds_whole_rows_in_few_registers(D: int) -> None:
    for tile, elements in ((row_tile, 32), (backward_tile, 32 if D > 16_384 else 16)):
        rows, block_d, warps = tile(D)
        assert block_d >= D
        assert rows * block_d == warps * 32 * elements


@pytest.mark.parametrize(
    ("row_blocks", "warps", "programs"), [(1, 4, 1), (80, 4, 10), (99_999, 4, 512), (9_999, 8, 256)]
)
def test_programs_of_a_weights_gradient_fill_a_wave(row_blocks: int, warps: int, programs: int) -> None:
    assert gradient_programs(row_blocks, warps) == programs


def test_what_does_not_fit_is_refused(device: str) -> None:
    x, weight = torch.ones(2, 8, device=device), torch.ones(4, device=device)
    with pytest.raises(ValueError, match=r"rms_norm needs x \[T, D\] and weight \[D\], got \(2, 8\) and \(4,\)"):
        rms_norm(x, weight, 1e-5)
    with pytest.raises(ValueError, match=r"add_rms_norm needs x .* got \(8,\) and \(8,\)"):
        add_rms_norm(x[0], x[0], x[0], 1e-5)
    with pytest.raises(ValueError, match=r"needs a residual of x's \(2, 8\) torch.float32, got \(1, 8\) torch.float32"):
        add_rms_norm(x, x[:1], x[0], 1e-5)
    with pytest.raises(ValueError, match=r"residual of x's \(2, 8\) torch.float32, got \(2, 8\) torch.float16"):
        add_rms_norm(x, x.half(), x[0], 1e-5)
