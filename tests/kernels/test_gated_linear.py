"""The gate-up product with its gated unit in one kernel, against the product and the unit one after the other."""

from collections.abc import Callable
from importlib import import_module
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvec_kernels import Activation, _switch, gated_linear, gated_linear_reference
from fastvec_kernels._accuracy import compare
from fastvec_kernels.gated_linear import TILES, Tile, gated_product
from tests.kernels import examples, refuse, surrounded

MODULE = import_module("fastvec_kernels.gated_linear")
SMALL = Tile(16, 16, 32, 4, 1)  # many groups of tiles
DTYPE = torch.float16  # the interpreter's bfloat16 products are wrong


@pytest.fixture
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "WIDEST", dict.fromkeys(TILES, 128))


def make_inputs(
    T: int, D: int, F: int, device: str, dtype: torch.dtype = DTYPE, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x and weight as slices of buffers full of NaN; gate and up have a standard deviation of 1."""
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(rows, D, generator=generator) for rows in (T, 2 * F))
    return surrounded(x.to(device, dtype)), surrounded((weight * D**-0.5).to(device, dtype))


def assert_right(found: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, activation: Activation) -> None:
    assert found.dtype == x.dtype
    assert compare((found,), (gated_linear_reference(x, weight, activation).detach(),))[1] is None


@given(
    T=st.sampled_from([1, 2, 17, 300]),
    D=st.sampled_from([64, 128]),
    F=st.sampled_from([1, 16, 40, 130]),
    activation=st.sampled_from(get_args(Activation)),
    tile=st.sampled_from([SMALL, *TILES["sm_90"]]),
    seed=st.integers(0, 999),
)
@settings(max_examples=examples(40))
@pytest.mark.usefixtures("only_kernels")
def test_it_matches_the_reference(
    T: int, D: int, F: int, activation: Activation, tile: Tile, seed: int, device: str
) -> None:
    x, weight = make_inputs(T, D, F, device, seed=seed)
    found = gated_product(x, weight, activation, tile)
    assert_right(found, x, weight, activation)
    assert torch.equal(found, gated_product(x, weight, activation, tile))


@pytest.mark.usefixtures("only_kernels")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # from NumPy about NaN, in the interpreter
def test_a_nan_stays_in_its_row(device: str) -> None:
    x, weight = make_inputs(20, 64, 24, device)
    clean = gated_product(x, weight, "silu", SMALL)
    x[19] = torch.nan  # which rows after the end repeat
    poisoned = gated_product(x, weight, "silu", SMALL)
    assert poisoned[19].isnan().all()
    assert torch.equal(poisoned[:19], clean[:19])


@pytest.mark.usefixtures("only_kernels", "switched_on")
def test_it_runs_where_it_is_switched_on(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "gated", refuse)
    x, weight = make_inputs(20, 128, 24, device)
    assert_right(gated_linear(x, weight, "gelu_tanh"), x, weight, "gelu_tanh")


def test_it_is_off_until_it_is_measured(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "launch", refuse)
    x, weight = make_inputs(20, 128, 24, device)
    assert_right(gated_linear(x, weight, "silu"), x, weight, "silu")


def needs_gradient(x: torch.Tensor) -> torch.Tensor:
    return x.clone().requires_grad_()


@pytest.mark.usefixtures("only_kernels", "switched_on")
@pytest.mark.parametrize(
    ("D", "dtype", "change"),
    [
        pytest.param(192, DTYPE, torch.clone, id="too wide"),
        pytest.param(96, DTYPE, torch.clone, id="no whole steps"),
        pytest.param(64, torch.float32, torch.clone, id="float32"),
        pytest.param(64, DTYPE, needs_gradient, id="gradient"),
    ],
)
def test_what_the_kernel_does_not_compute_runs_one_after_the_other(
    D: int,
    dtype: torch.dtype,
    change: Callable[[torch.Tensor], torch.Tensor],
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MODULE, "launch", refuse)
    x, weight = make_inputs(5, D, 24, device, dtype)
    x = change(x)
    assert_right(gated_linear(x, weight, "silu"), x, weight, "silu")


@pytest.mark.usefixtures("only_kernels", "switched_on")
def test_weights_of_another_dtype_are_for_autocast(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "launch", refuse)
    x, weight = make_inputs(5, 64, 24, device, torch.bfloat16)
    with torch.autocast(device, torch.bfloat16):
        found = gated_linear(x, weight.float(), "silu")
    assert_right(found, x, weight, "silu")


@pytest.mark.usefixtures("only_kernels", "switched_on")
def test_a_switched_op_is_not_in_the_kernel(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_switch, "_on_torch", {"gated_linear": "a test"})
    monkeypatch.setattr(MODULE, "launch", refuse)
    x, weight = make_inputs(5, 64, 24, device)
    assert_right(gated_linear(x, weight, "silu"), x, weight, "silu")


def test_no_tokens_give_no_rows(device: str) -> None:
    x, weight = make_inputs(0, 64, 24, device)
    assert gated_linear(x, weight, "silu").shape == (0, 24)


@pytest.mark.parametrize(
    ("x", "weight"),
    [((5, 64), (48, 32)), ((5, 64), (47, 64)), ((5, 1, 64), (48, 64)), ((5, 64), (48,))],
)
def test_what_does_not_fit_is_refused(x: tuple[int, ...], weight: tuple[int, ...], device: str) -> None:
    with pytest.raises(ValueError, match=r"gated_linear needs x \[T, D\] and weight \[2F, D\], got"):
        gated_linear(torch.ones(x, device=device), torch.ones(weight, device=device), "silu")
