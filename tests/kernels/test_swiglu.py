import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvec_kernels import geglu, geglu_reference, swiglu, swiglu_reference
from fastvec_kernels.swiglu import _gated, _gated_backward, tile
from tests.kernels import examples

Op = Callable[[torch.Tensor], torch.Tensor]
# from NumPy, in the interpreter, when a sigmoid is 1 / (1 + inf)
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# each op with its reference and PyTorch's activation, which rounds in the order of a plain model
OPS: dict[str, tuple[Op, Op, Op]] = {
    "swiglu": (swiglu, swiglu_reference, F.silu),
    "geglu": (geglu, geglu_reference, partial(F.gelu, approximate="tanh")),
    "geglu-none": (
        partial(geglu, approximate="none"),
        partial(geglu_reference, approximate="none"),
        partial(F.gelu, approximate="none"),
    ),
}
cases = {
    "name": st.sampled_from(list(OPS)),
    "T": st.sampled_from([1, 2, 17, 63]),
    "width": st.sampled_from([1, 8, 63, 100, 896, 1024, 1100, 2560]),
    "dtype": st.sampled_from(DTYPES),
    "seed": st.integers(0, 999),
}


def surrounded(x: torch.Tensor) -> torch.Tensor:
    """Return `x` [T, D] as a slice of a larger buffer full of NaN."""
    T, D = x.shape
    buffer = torch.full((T + 2, D + 16), torch.nan, dtype=x.dtype, device=x.device)
    buffer[1:-1, 8:-8] = x
    return buffer[1:-1, 8:-8]


def assert_no_worse(found: torch.Tensor, expected: torch.Tensor, same_precision: torch.Tensor) -> None:
    """Check for at most twice the error of PyTorch in the same precision, plus one rounding of the largest entry."""
    assert found.shape == expected.shape
    rounding = max(torch.finfo(found.dtype).eps, 1e-6) * expected.abs().max()
    error, allowed = (found - expected).abs().max(), (same_precision - expected).abs().max()  # in float64
    assert error <= 2 * allowed + rounding


def gradient(op: Op, gate_up: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    leaf = gate_up.detach().requires_grad_()
    (found,) = torch.autograd.grad(op(leaf), leaf, dy.to(leaf.dtype))
    return found


@given(**cases)
@settings(max_examples=examples(30))
def test_outputs_and_gradients_are_as_exact_as_pytorch(
    name: str, T: int, width: int, dtype: torch.dtype, seed: int, device: str
) -> None:
    op, reference, activation = OPS[name]
    generator = torch.Generator().manual_seed(seed)
    gate_up = surrounded((3 * torch.randn(T, 2 * width, generator=generator)).to(device, dtype))
    dy = surrounded(torch.randn(T, width, generator=generator).to(device, dtype))

    def in_the_same_precision(gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, 1)
        return activation(gate) * up

    y = op(gate_up)
    assert y.dtype == dtype
    assert_no_worse(y, reference(gate_up.double()), in_the_same_precision(gate_up))
    assert torch.equal(y, op(gate_up))
    found = gradient(op, gate_up, dy)
    assert found.dtype == dtype
    assert_no_worse(found, gradient(reference, gate_up.double(), dy), gradient(in_the_same_precision, gate_up, dy))
    assert torch.equal(found, gradient(op, gate_up, dy))


@pytest.mark.parametrize("name", OPS)
def test_the_activation_is_exact_to_fp32_rounding_everywhere(name: str, device: str) -> None:
    op, reference, _ = OPS[name]
    gate = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    gate_up = torch.cat([gate.float().double(), torch.ones_like(gate)], 1)
    y, expected = op(gate_up.float().to(device)).cpu().double(), reference(gate_up)
    # in the tail, 1 + erf(−x) loses relative precision, as in PyTorch, so the tolerance is absolute
    torch.testing.assert_close(y, expected, rtol=2e-6, atol=4e-7 if name != "swiglu" else 1e-9)


@pytest.mark.parametrize("op", [swiglu, swiglu_reference])
def test_swiglu_on_numbers_worked_by_hand(op: Op, device: str) -> None:
    gate_up = torch.tensor([[0.0, math.log(3), 7.0, 4.0]], device=device)  # sigmoid(log 3) = 3/4
    torch.testing.assert_close(op(gate_up).cpu(), torch.tensor([[0.0, 3 * math.log(3)]]))


@pytest.mark.parametrize("op", [geglu, geglu_reference])
def test_geglu_on_numbers_worked_by_hand(op: Any, device: str) -> None:
    gate_up = torch.tensor([[1.0, -1.0, 2.0, 3.0]], device=device)  # normal CDF at 1: 0.8413447
    torch.testing.assert_close(op(gate_up, approximate="none").cpu(), torch.tensor([[1.6826895, -0.4759658]]))
    torch.testing.assert_close(op(gate_up).cpu(), torch.tensor([[1.6823840, -0.4764240]]))  # tanh form: 0.8411920


@pytest.mark.parametrize("name", OPS)
def test_large_gates_saturate(name: str, device: str) -> None:
    gate_up = torch.tensor([[-1e4, 1e4, 2.0, 3.0]], device=device)
    assert OPS[name][0](gate_up).tolist() == [[0.0, 3e4]]
    assert gradient(OPS[name][0], gate_up, torch.ones(1, 2, device=device)).tolist() == [[0.0, 3.0, 0.0, 1e4]]


def test_a_gradient_that_is_one_number_everywhere_arrives(device: str) -> None:
    """The gradient of a sum is an expanded tensor with strides of 0."""
    gate_up = torch.randn(3, 100, device=device, requires_grad=True)
    (found,) = torch.autograd.grad(swiglu(gate_up).sum(), gate_up)
    (expected,) = torch.autograd.grad(swiglu_reference(gate_up).sum(), gate_up)
    torch.testing.assert_close(found, expected)


def test_no_tokens_give_no_rows(device: str) -> None:
    gate_up = torch.ones(0, 8, device=device)
    assert [op(gate_up).shape for op in (swiglu, geglu)] == [(0, 4), (0, 4)]


@pytest.mark.parametrize("name", OPS)
def test_the_references_gradients_are_right(name: str) -> None:
    assert torch.autograd.gradcheck(OPS[name][1], torch.randn(3, 10, dtype=torch.float64, requires_grad=True))


@pytest.mark.usefixtures("only_kernels")
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
def test_the_custom_operators_are_well_formed(activation: str, device: str) -> None:
    gate_up = torch.randn(5, 24, device=device)
    torch.library.opcheck(_gated, (gate_up.clone().requires_grad_(), activation))
    torch.library.opcheck(_gated_backward, (torch.randn(5, 12, device=device), gate_up, activation))


@pytest.mark.parametrize("name", OPS)
def test_compiled_forward_and_backward_give_the_same(name: str, device: str) -> None:
    gate_up, dy = torch.randn(9, 40, device=device), torch.randn(9, 20, device=device)
    compiled = torch.compile(OPS[name][0], fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(gate_up), OPS[name][0](gate_up))
    assert torch.equal(gradient(compiled, gate_up, dy), gradient(OPS[name][0], gate_up, dy))


@pytest.mark.parametrize(
    ("width", "expected"), [(1, (2048, 1)), (100, (16, 128)), (896, (2, 1024)), (14_336, (2, 1024))]
)
def test_a_program_holds_2048_elements(width: int, expected: tuple[int, int]) -> None:
    assert tile(width) == expected


def test_what_does_not_fit_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=r"swiglu needs gate_up \[T, 2F\], got \(2, 7\)"):
        swiglu(torch.ones(2, 7, device=device))
    with pytest.raises(ValueError, match=r"geglu needs gate_up \[T, 2F\], got \(8,\)"):
        geglu(torch.ones(8, device=device))
    approximate: Any = "erf"
    with pytest.raises(ValueError, match="geglu needs approximate to be one of tanh, none, got 'erf'"):
        geglu(torch.ones(2, 8, device=device), approximate=approximate)
