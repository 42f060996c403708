from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvec_kernels import pool, pool_reference
from fastvec_kernels.pooling import Mode

MODES = get_args(Mode)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float64: 1e-12}


@st.composite
def spans(draw: st.DrawFn) -> list[list[int]]:
    """Spans inside sequences of 1 to 40 tokens, laid end to end; tokens before and after a span belong to nothing."""
    found, start = [], 0
    for length in draw(st.lists(st.integers(1, 40), min_size=1, max_size=6)):
        begin = draw(st.integers(0, length - 1))
        found.append([start + begin, start + draw(st.integers(begin + 1, length))])
        start += length
    return found


@given(
    spans=spans(),
    mode=st.sampled_from(MODES),
    with_residual=st.booleans(),
    with_norm=st.booleans(),
    dims=st.sampled_from([None, 1, 5, 12]),
    normalize=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    out_dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 999),
)
@settings(max_examples=150)
def test_pool_matches_the_reference(
    spans: list[list[int]],
    mode: Mode,
    with_residual: bool,
    with_norm: bool,
    dims: int | None,
    normalize: bool,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden, residual = (torch.randn(spans[-1][1] + 3, 12, generator=generator).to(dtype) for _ in range(2))
    options: dict[str, Any] = {
        "residual": residual if with_residual else None,
        "weight": torch.randn(12, generator=generator).to(dtype) if with_norm else None,
        "eps": 1e-3,
        "dims": dims,
        "normalize": normalize,
        "out_dtype": out_dtype,
    }
    vectors = pool(hidden, torch.tensor(spans), mode, **options)
    assert vectors.dtype == out_dtype
    assert vectors.shape == (len(spans), dims or 12)
    expected = pool_reference(hidden, torch.tensor(spans), mode, **options)
    tolerance = max(TOLERANCE[out_dtype], 1e-12 if dtype == torch.float64 else 1e-5)
    torch.testing.assert_close(vectors, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("pooling", [pool, pool_reference])
def test_the_definition_on_numbers_worked_by_hand(pooling: Any) -> None:
    hidden = torch.tensor([[9.0, 9.0], [3.0, 0.0], [0.0, 6.0], [6.0, 3.0], [-4.0, 3.0]])
    spans = torch.tensor([[1, 4], [4, 5]])
    assert pooling(hidden, spans, "mean").tolist() == [[3.0, 3.0], [-4.0, 3.0]]
    torch.testing.assert_close(pooling(hidden, spans, "weighted_mean"), torch.tensor([[3.5, 3.5], [-4.0, 3.0]]))
    assert pooling(hidden, spans, "last").tolist() == [[6.0, 3.0], [-4.0, 3.0]]
    assert pooling(hidden, spans, "first").tolist() == [[3.0, 0.0], [-4.0, 3.0]]
    assert pooling(hidden, spans, "mean", dims=1, normalize=True).tolist() == [[1.0], [-1.0]]
    normed = pooling(
        hidden[4:], torch.tensor([[0, 1]]), "last", residual=torch.tensor([[5.0, 4.0]]), weight=torch.ones(2)
    )
    torch.testing.assert_close(normed, torch.tensor([[0.2, 1.4]]), rtol=0, atol=1e-6)  # (1, 7) / sqrt(25)


@pytest.mark.parametrize("mode", MODES)
def test_a_nan_outside_a_span_stays_outside(mode: Mode) -> None:
    hidden = torch.randn(9, 4)
    spans = torch.tensor([[1, 4], [4, 6], [7, 9]])
    clean = pool(hidden, spans, mode, weight=torch.ones(4))
    hidden[[0, 4, 5, 6]] = torch.nan  # before, the whole second span, between
    vectors = pool(hidden, spans, mode, weight=torch.ones(4))
    assert vectors[1].isnan().all()
    assert torch.equal(vectors[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("mode", ["mean", "weighted_mean"])
def test_a_large_neighbour_costs_no_precision(mode: Mode) -> None:
    """A difference of running sums would lose every digit here."""
    hidden = torch.cat([torch.full((100, 2), 1e9), torch.ones(3, 2)])
    assert pool(hidden, torch.tensor([[0, 100], [100, 103]]), mode)[1].tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_half_precision_states_are_summed_in_float32() -> None:
    hidden = torch.full((4096, 1), 1.0, dtype=torch.bfloat16)  # a bfloat16 sum of ones stops at 256
    assert pool(hidden, torch.tensor([[0, 4096]]), "mean").tolist() == [[1.0]]


def test_a_zero_vector_stays_zero_when_normalised() -> None:
    hidden = torch.zeros(3, 4, requires_grad=True)
    vectors = pool(hidden, torch.tensor([[0, 3]]), "mean", normalize=True)
    assert vectors.tolist() == [[0.0] * 4]
    (gradient,) = torch.autograd.grad(vectors.sum(), hidden)
    assert gradient.isfinite().all()


def test_spans_may_overlap() -> None:
    hidden = torch.arange(8.0).reshape(4, 2)
    spans = torch.tensor([[1, 4], [0, 2]])
    torch.testing.assert_close(pool(hidden, spans, "mean"), pool_reference(hidden, spans, "mean"))


@pytest.mark.parametrize("pooling", [pool, pool_reference])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_right(pooling: Any, mode: Mode) -> None:
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in [(6, 3), (6, 3), (3,)]]

    def vectors(hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        options: dict[str, Any] = {
            "residual": residual,
            "weight": weight,
            "normalize": True,
            "out_dtype": torch.float64,
        }
        out: torch.Tensor = pooling(hidden, torch.tensor([[0, 3], [4, 6]]), mode, **options)
        return out

    assert torch.autograd.gradcheck(vectors, inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.ones(5)}, r"needs hidden \[T, D\] and spans \[n, 2\] .* got \(5,\)"),
        ({"spans": torch.zeros(0, 2, dtype=torch.int64)}, r"needs .* with n > 0, got .* \(0, 2\)"),
        ({"spans": torch.tensor([[2, 2]])}, r"needs non-empty spans inside 5 tokens, got \[\[2, 2\]\]"),
        ({"spans": torch.tensor([[-1, 2]])}, "needs non-empty spans inside 5 tokens"),
        ({"spans": torch.tensor([[0, 6]])}, "needs non-empty spans inside 5 tokens"),
        ({"residual": torch.ones(5, 3)}, r"needs a residual of \(5, 4\), got \(5, 3\)"),
        ({"weight": torch.ones(5)}, r"needs a norm weight of \(4,\), got \(5,\)"),
        ({"mode": "max"}, "needs a mode of mean, weighted_mean, last, first, got 'max'"),
        ({"dims": 5}, "needs dims of 1 to 4, got 5"),
        ({"out_dtype": torch.int8}, r"needs a floating out_dtype, got torch\.int8"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments = {"hidden": torch.ones(5, 4), "spans": torch.tensor([[0, 5]]), "mode": "mean", **change}
    with pytest.raises(ValueError, match=f"pool {message}"):
        pool(**arguments)
