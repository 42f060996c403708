from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvec_kernels import pool, pool_reference
from fastvec_kernels.pooling.interface import Mode
from tests.kernels import examples

MODES = get_args(Mode)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float64: 1e-12}


@st.composite
def spans(draw: st.DrawFn) -> list[list[int]]:
    """Spans inside packed sequences; tokens before and after a span belong to no span."""
    found, start = [], 0
    lengths = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 129, 300]))
    for length in draw(st.lists(lengths, min_size=1, max_size=6)):
        begin = draw(st.integers(0, min(length - 1, 9)))
        found.append([start + begin, start + draw(st.integers(begin + 1, length))])
        start += length
    return found


def surrounded(x: torch.Tensor) -> torch.Tensor:
    """Return `x` [T, D] as a slice of a larger buffer full of NaN."""
    buffer = x.new_full((len(x) + 2, x.shape[1] + 16), torch.nan)
    buffer[1:-1, 8:-8] = x
    return buffer[1:-1, 8:-8]


@given(
    spans=spans(),
    mode=st.sampled_from(MODES),
    width=st.sampled_from([12, 16, 63, 100]),
    residual_dtype=st.sampled_from([None, torch.float32, torch.bfloat16]),
    with_norm=st.booleans(),
    dims=st.sampled_from([None, 1, 5, 12]),
    normalize=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
    out_dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 999),
)
@settings(max_examples=examples(150))
def test_pool_matches_the_reference(
    spans: list[list[int]],
    mode: Mode,
    width: int,
    residual_dtype: torch.dtype | None,
    with_norm: bool,
    dims: int | None,
    normalize: bool,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    seed: int,
    device: str,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden, residual = (torch.randn(spans[-1][1] + 3, width, generator=generator).to(device) for _ in range(2))
    hidden = surrounded(hidden.to(dtype))
    options: dict[str, Any] = {
        "residual": None if residual_dtype is None else surrounded(residual.to(residual_dtype)),
        "weight": torch.randn(width, generator=generator).to(device, dtype) if with_norm else None,
        "eps": 1e-3,
        "dims": dims,
        "normalize": normalize,
        "out_dtype": out_dtype,
    }
    vectors = pool(hidden, torch.tensor(spans), mode, **options)
    assert vectors.dtype == out_dtype
    assert vectors.shape == (len(spans), dims or width)
    expected = pool_reference(hidden, torch.tensor(spans), mode, **options)
    tolerance = max(TOLERANCE[out_dtype], 1e-12 if dtype == torch.float64 else 1e-5)
    torch.testing.assert_close(vectors, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_half_precision_is_as_exact_as_pytorch_can_be(mode: Mode, dtype: torch.dtype, device: str) -> None:
    """FlashAttention's rule: at most twice the error of plain PyTorch in the same precision."""
    generator = torch.Generator().manual_seed(0)
    hidden, residual = (torch.randn(210, 100, generator=generator).to(device, dtype) for _ in range(2))
    weight = torch.randn(100, generator=generator).to(device, dtype)
    spans = torch.tensor([[2, 7], [7, 207]])
    options: dict[str, Any] = {"normalize": True, "dims": 63}
    wide = pool_reference(hidden.float(), spans, mode, residual=residual.float(), weight=weight.float(), **options)
    x = hidden + residual
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight
    plain = torch.stack(
        [pool_reference(x[a:b].float(), torch.tensor([[0, b - a]]), mode)[0] for a, b in spans.tolist()]
    )
    plain = torch.nn.functional.normalize(plain.to(dtype)[:, :63], dim=-1)
    vectors = pool(hidden, spans, mode, residual=residual, weight=weight, out_dtype=dtype, **options)
    allowed = 2 * (plain.float() - wide).abs().max() + torch.finfo(dtype).eps * wide.abs().max()
    assert (vectors.float() - wide).abs().max() <= allowed


@pytest.mark.parametrize("pooling", [pool, pool_reference])
def test_the_definition_on_numbers_worked_by_hand(pooling: Any, device: str) -> None:
    hidden = torch.tensor([[9.0, 9.0], [3.0, 0.0], [0.0, 6.0], [6.0, 3.0], [-4.0, 3.0]], device=device)
    spans = torch.tensor([[1, 4], [4, 5]])
    weighted = torch.tensor([[3.5, 3.5], [-4.0, 3.0]], device=device)
    assert pooling(hidden, spans, "mean").tolist() == [[3.0, 3.0], [-4.0, 3.0]]
    torch.testing.assert_close(pooling(hidden, spans, "weighted_mean"), weighted)
    assert pooling(hidden, spans, "last").tolist() == [[6.0, 3.0], [-4.0, 3.0]]
    assert pooling(hidden, spans, "first").tolist() == [[3.0, 0.0], [-4.0, 3.0]]
    assert pooling(hidden, spans, "mean", dims=1, normalize=True).tolist() == [[1.0], [-1.0]]
    residual, weight = torch.tensor([[5.0, 4.0]], device=device), torch.ones(2, device=device)
    normed = pooling(hidden[4:], torch.tensor([[0, 1]]), "last", residual=residual, weight=weight)
    torch.testing.assert_close(normed.cpu(), torch.tensor([[0.2, 1.4]]), rtol=0, atol=1e-6)  # (1, 7) / sqrt(25)


@pytest.mark.parametrize("pooling", [pool, pool_reference])
def test_int8_rounds_half_to_even_and_saturates(pooling: Any, device: str) -> None:
    hidden = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 200.0, -127.6, 0.0]], device=device)
    ranges = torch.full((9,), 127.0, device=device)
    vectors = pooling(hidden, torch.tensor([[0, 1]]), "mean", out_dtype=torch.int8, ranges=ranges)
    assert vectors.dtype == torch.int8
    assert vectors.tolist() == [[0, 2, 2, 0, -2, 126, 127, -127, 0]]


def quantized(pooling: Any, out_dtype: torch.dtype, device: str) -> tuple[Any, Any, Any]:
    """Pool random hidden states; return vectors in float32 and in `out_dtype`, and the ranges of int8."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(180, 100, generator=generator).to(device)
    ranges = (torch.rand(72, generator=generator) * 0.3 + 0.01).to(device)
    options: dict[str, Any] = {"weight": torch.ones(100, device=device), "dims": 72, "normalize": True}
    spans = torch.tensor([[0, 1], [1, 40], [40, 177]])
    wide = pooling(hidden, spans, "mean", **options)
    given = {"ranges": ranges} if out_dtype == torch.int8 else {}
    narrow = pooling(hidden, spans, "mean", **options, **given, out_dtype=out_dtype)
    return wide.cpu().numpy(), narrow.cpu().numpy(), ranges.cpu().numpy()


@pytest.mark.parametrize("pooling", [pool, pool_reference])
def test_int8_vectors_are_the_float32_ones_in_steps_of_their_ranges(pooling: Any, device: str) -> None:
    wide, narrow, ranges = quantized(pooling, torch.int8, device)
    assert np.array_equal(narrow, np.clip(np.rint(wide / ranges * 127), -127, 127).astype(np.int8))
    assert (np.abs(narrow) == 127).any()


@pytest.mark.parametrize("pooling", [pool, pool_reference])
def test_int8_divides_and_multiplies_as_numpy_does(pooling: Any, device: str) -> None:
    """Near a tie, the last bit decides: x · (127 / range) may round differently from (x / range) · 127."""
    generator = torch.Generator().manual_seed(0)
    ranges = torch.rand(1000, generator=generator) + 0.1
    hidden = (torch.randint(-126, 126, (1, 1000), generator=generator) + 0.5) / 127 * ranges
    options: dict[str, Any] = {"out_dtype": torch.int8, "ranges": ranges.to(device)}
    vectors = pooling(hidden.to(device), torch.tensor([[0, 1]]), "first", **options).cpu().numpy()
    assert np.array_equal(vectors, np.clip(np.rint(hidden.numpy() / ranges.numpy() * 127), -127, 127).astype(np.int8))


@pytest.mark.parametrize("pooling", [pool, pool_reference])
def test_binary_vectors_are_the_packed_signs_of_the_float32_ones(pooling: Any, device: str) -> None:
    wide, narrow, _ = quantized(pooling, torch.uint8, device)
    assert np.array_equal(narrow, np.packbits(wide > 0, axis=1))


def test_a_zero_has_no_bit(device: str) -> None:
    hidden = torch.tensor([[0.0, -0.0, 1e-30, -1.0, 0.0, 0.0, 0.0, 2.0]], device=device)
    assert pool(hidden, torch.tensor([[0, 1]]), "mean", out_dtype=torch.uint8).tolist() == [[0b00100001]]


@pytest.mark.parametrize("out_dtype", [torch.int8, torch.uint8], ids=str)
def test_quantised_vectors_have_no_gradient(out_dtype: torch.dtype, device: str) -> None:
    hidden = torch.ones(3, 8, device=device, requires_grad=True)
    ranges = torch.ones(8, device=device) if out_dtype == torch.int8 else None
    assert not pool(hidden, torch.tensor([[0, 3]]), "mean", out_dtype=out_dtype, ranges=ranges).requires_grad


@pytest.mark.parametrize("length", [2, 70])
@pytest.mark.parametrize("mode", MODES)
def test_a_nan_outside_a_span_stays_outside(mode: Mode, length: int, device: str) -> None:
    hidden = torch.randn(2 * length + 5, 4, device=device)
    spans = torch.tensor([[1, 1 + length], [1 + length, 3 + length], [4 + length, 4 + 2 * length]])
    clean = pool(hidden, spans, mode, weight=torch.ones(4, device=device))
    # before the first span, the whole second span and the gap after it, and after the last span
    hidden[0] = hidden[1 + length : 4 + length] = hidden[-1] = torch.nan
    vectors = pool(hidden, spans, mode, weight=torch.ones(4, device=device))
    assert vectors[1].isnan().all()
    assert torch.equal(vectors[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("mode", ["mean", "weighted_mean"])
def test_a_large_neighbour_costs_no_precision(mode: Mode, device: str) -> None:
    """The difference of two running sums would lose every digit here."""
    hidden = torch.cat([torch.full((100, 2), 1e9), torch.ones(3, 2)]).to(device)
    assert pool(hidden, torch.tensor([[0, 100], [100, 103]]), mode)[1].tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_half_precision_states_are_summed_in_float32(device: str) -> None:
    hidden = torch.full((4096, 1), 1.0, dtype=torch.bfloat16, device=device)  # a sum of ones in bfloat16 stops at 256
    assert pool(hidden, torch.tensor([[0, 4096]]), "mean").tolist() == [[1.0]]


def test_a_zero_vector_stays_zero_when_normalized(device: str) -> None:
    hidden = torch.zeros(3, 4, requires_grad=True, device=device)
    with torch.no_grad():
        assert pool(hidden, torch.tensor([[0, 3]]), "mean", normalize=True).tolist() == [[0.0] * 4]
    vectors = pool(hidden, torch.tensor([[0, 3]]), "mean", normalize=True)
    assert vectors.tolist() == [[0.0] * 4]
    (gradient,) = torch.autograd.grad(vectors.sum(), hidden)
    assert gradient.isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value")  # from NumPy, in the interpreter
def test_an_overflow_outside_dims_stays_outside_the_l2_norm(device: str) -> None:
    hidden = torch.ones(1, 8, device=device)
    hidden[0, 6] = torch.inf  # RMSNorm turns it into NaN and everything else into zero
    options: dict[str, Any] = {"weight": torch.ones(8, device=device), "dims": 4, "normalize": True}
    assert pool(hidden, torch.tensor([[0, 1]]), "mean", **options).tolist() == [[0.0] * 4]


@pytest.mark.filterwarnings("ignore:divide by zero")  # from NumPy, in the interpreter
def test_a_norm_without_epsilon_is_finite(device: str) -> None:
    """Rows missing from a tile and gaps between spans are zeros, and the kernels divide by their norm."""
    hidden = torch.randn(7, 4, device=device, requires_grad=True)
    vectors = pool(hidden, torch.tensor([[0, 3], [4, 6]]), "mean", weight=torch.ones(4, device=device), eps=0.0)
    (gradient,) = torch.autograd.grad(vectors.sum(), hidden)
    assert vectors.isfinite().all()
    assert gradient.isfinite().all()
    assert (gradient[[3, 6]] == 0).all()


def test_spans_may_overlap(device: str) -> None:
    hidden = torch.arange(8.0, device=device).reshape(4, 2)
    spans = torch.tensor([[1, 4], [0, 2]])
    torch.testing.assert_close(pool(hidden, spans, "mean"), pool_reference(hidden, spans, "mean"))


@pytest.mark.parametrize("pooling", [pool, pool_reference])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_right(pooling: Any, mode: Mode, device: str) -> None:
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
        (
            {"spans": torch.tensor([[0, 5]], dtype=torch.int32)},
            r"needs int64 spans on the host, got torch\.int32 on cpu",
        ),
        ({"spans": torch.tensor([[0, 5]], device="meta")}, r"needs int64 spans on the host, got torch\.int64 on meta"),
        ({"residual": torch.ones(5, 3)}, r"needs a residual of \(5, 4\), got \(5, 3\)"),
        ({"weight": torch.ones(5)}, r"needs a norm weight of \(4,\), got \(5,\)"),
        ({"mode": "max"}, "needs mode to be one of mean, weighted_mean, last, first, got 'max'"),
        ({"dims": 5}, "needs dims of 1 to 4, got 5"),
        ({"dims": 0}, "needs dims of 1 to 4, got 0"),
        ({"out_dtype": torch.int16}, r"needs an out_dtype that is floating, int8 or uint8, got torch\.int16"),
        ({"out_dtype": torch.int8}, r"needs ranges of shape \(4,\) for torch\.int8, got None"),
        ({"out_dtype": torch.int8, "ranges": torch.ones(4), "dims": 3}, r"needs ranges of shape \(3,\) .* got \(4,\)"),
        ({"ranges": torch.ones(4)}, r"needs no ranges for torch\.float32, got \(4,\)"),
        ({"out_dtype": torch.uint8}, "packs 8 dimensions into each uint8 and needs dims divisible by 8, got 4"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str, device: str) -> None:
    arguments = {"hidden": torch.ones(5, 4), "spans": torch.tensor([[0, 5]]), "mode": "mean", **change}
    arguments["hidden"] = arguments["hidden"].to(device)
    with pytest.raises(ValueError, match=f"pool {message}"):
        pool(**arguments)
