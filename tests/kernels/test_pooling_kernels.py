"""Specific to the pooling kernels: their own gradients, spans cut into pieces, and ops for torch.compile."""

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvec_kernels import pool, pool_reference
from fastvec_kernels.pooling.interface import Mode
from fastvec_kernels.pooling.op import fused_pool, weighted_sums, weighted_sums_backward
from tests.kernels import examples

pytestmark = pytest.mark.usefixtures("only_kernels")

MODES = get_args(Mode)
# gaps before, between and after; the last span adjoins the one before; one, two and three pieces of 64 tokens
SPANS = [[2, 3], [5, 69], [71, 141], [141, 291]]
LAYOUTS = {"disjoint": SPANS, "out of order": SPANS[::-1], "overlapping": [*SPANS, [0, 100], [60, 75], [60, 75]]}


def states(*shape: int, device: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def gradients(pooling: Any, inputs: list[torch.Tensor], spans: Any, mode: Mode, **options: Any) -> list[torch.Tensor]:
    """Return d hidden, d residual and d weight, one per input, for a random upstream gradient."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    named = dict(zip(("residual", "weight"), leaves[1:], strict=False))
    vectors = pooling(leaves[0], torch.tensor(spans), mode, **named, **options)
    upstream = states(*vectors.shape, device=str(vectors.device), seed=9).to(vectors.dtype)
    return list(torch.autograd.grad(vectors, leaves, upstream))


@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    mode=st.sampled_from(MODES),
    width=st.sampled_from([1, 12, 63, 100]),
    inputs=st.sampled_from([1, 2, 3]),
    truncate=st.booleans(),
    normalize=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(25))
def test_gradients_match_the_references(
    layout: str, mode: Mode, width: int, inputs: int, truncate: bool, normalize: bool, seed: int, device: str
) -> None:
    tensors = [states(295, width, device=device, seed=seed + i) for i in range(2)] + [states(width, device=device) + 2]
    options = {"normalize": normalize and width > 1, "eps": 0.1, "dims": (width + 1) // 2 if truncate else None}
    found = gradients(pool, tensors[:inputs], LAYOUTS[layout], mode, **options)
    wide = gradients(pool_reference, [x.double() for x in tensors[:inputs]], LAYOUTS[layout], mode, **options)
    for gradient, expected in zip(found, wide, strict=True):
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_half_precision_are_rounded_once(dtype: torch.dtype, device: str) -> None:
    inputs = [states(295, 100, device=device, dtype=dtype, seed=i) for i in range(2)] + [states(100, device=device)]
    found = gradients(pool, inputs, SPANS, "mean", normalize=True)
    wide = gradients(pool_reference, [x.float() for x in inputs], SPANS, "mean", normalize=True)
    assert [gradient.dtype for gradient in found] == [dtype, dtype, torch.float32]
    for gradient, expected in zip(found, wide, strict=True):
        tolerance = 2 * torch.finfo(gradient.dtype).eps  # 2: the interpreter truncates to bfloat16, not rounds
        torch.testing.assert_close(gradient.float(), expected, rtol=tolerance, atol=1e-5)


def test_a_wider_residual_keeps_its_own_gradient(device: str) -> None:
    inputs = [states(9, 16, device=device, dtype=torch.bfloat16), states(9, 16, device=device)]
    of_hidden, of_residual = gradients(pool, inputs, [[0, 7]], "weighted_mean")
    (expected,) = gradients(pool_reference, [inputs[1]], [[0, 7]], "weighted_mean")
    assert (of_hidden.dtype, of_residual.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(of_residual, expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_nan_outside_a_span_has_no_gradient_and_changes_none(mode: Mode, device: str) -> None:
    inputs = [states(295, 12, device=device, seed=i) for i in range(2)] + [torch.ones(12, device=device)]
    outside = torch.ones(295, dtype=torch.bool)
    for begin, end in SPANS:
        outside[begin:end] = False
    clean = gradients(pool, inputs, SPANS, mode)
    inputs[0][outside] = torch.nan
    poisoned = gradients(pool, inputs, SPANS, mode)
    assert (poisoned[0][outside] == 0).all()
    for gradient, expected in zip(poisoned, clean, strict=True):
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("options", [{}, {"weight": torch.ones(100)}, {"normalize": True, "dims": 63}], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_a_vector_has_the_same_bits_in_any_batch(mode: Mode, options: dict[str, Any], device: str) -> None:
    hidden = states(295, 100, device=device)
    options = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    together = pool(hidden, torch.tensor(SPANS), mode, **options)
    assert torch.equal(together, pool(hidden, torch.tensor(SPANS), mode, **options))
    assert torch.equal(together.flip(0), pool(hidden, torch.tensor(SPANS[::-1]), mode, **options))
    for vector, (begin, end) in zip(together, SPANS, strict=True):
        alone = pool(hidden[begin:end].clone(), torch.tensor([[0, end - begin]]), mode, **options)
        assert torch.equal(alone[0], vector)


def test_training_and_inference_pool_alike(device: str) -> None:
    hidden, weight = states(295, 100, device=device), states(100, device=device)
    inference = pool(hidden, torch.tensor(SPANS), "mean", weight=weight, normalize=True)
    training = pool(hidden.requires_grad_(), torch.tensor(SPANS), "mean", weight=weight, normalize=True)
    assert training.requires_grad
    torch.testing.assert_close(training.detach(), inference, rtol=1e-6, atol=1e-7)


def test_a_wide_row_is_pooled_as_a_narrow_one(device: str) -> None:
    """With a residual, 8,192 dimensions take one row per tile; 8,200 take PyTorch's operations."""
    for width in (4095, 8192, 8200):
        hidden, residual = (states(70, width, device=device, seed=seed) for seed in range(2))
        options: dict[str, Any] = {"residual": residual, "weight": torch.ones(width, device=device), "normalize": True}
        expected = pool_reference(hidden, torch.tensor([[1, 67]]), "mean", **options)
        torch.testing.assert_close(pool(hidden, torch.tensor([[1, 67]]), "mean", **options), expected)


@pytest.mark.slow
def test_the_ops_keep_pytorchs_rules(device: str) -> None:
    hidden, residual, weight = states(80, 16, device=device), states(80, 16, device=device), states(16, device=device)
    spans = torch.tensor([[0, 70], [72, 80]])
    for out_dtype, ranges in ((torch.float16, None), (torch.int8, torch.ones(8, device=device)), (torch.uint8, None)):
        given = (hidden, spans, residual, weight, ranges, "mean", 1e-6, 8, True, out_dtype)
        torch.library.opcheck(fused_pool, given)
    leaves = (hidden.requires_grad_(), spans, residual.requires_grad_())
    torch.library.opcheck(weighted_sums, (*leaves, "weighted_mean", True, 1e-6, 8))
    torch.library.opcheck(weighted_sums, (hidden, spans, None, "last", False, 1e-6, 16))
    grad = states(2, 8, device=device)
    torch.library.opcheck(weighted_sums_backward, (grad, hidden.detach(), spans, None, "mean", True, 1e-6))


@pytest.mark.parametrize("trains", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_pooling_compiles_into_one_graph(trains: bool, device: str) -> None:
    hidden, weight = states(295, 16, device=device).requires_grad_(trains), torch.ones(16, device=device)

    def vectors(hidden: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
        return pool(hidden * 2, spans, "mean", weight=weight, normalize=True)

    compiled = torch.compile(vectors, fullgraph=True, backend="aot_eager")
    expected, found = (call(hidden, torch.tensor(SPANS)) for call in (vectors, compiled))
    assert torch.equal(found, expected)
    if trains:
        of_expected, of_found = (torch.autograd.grad(y.square()[:, 0].sum(), hidden)[0] for y in (expected, found))
        torch.testing.assert_close(of_found, of_expected)
