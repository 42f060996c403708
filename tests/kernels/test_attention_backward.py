from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvec_kernels import AttentionPlan, attention_reference
from tests import THOROUGH
from tests.kernels import examples
from tests.kernels.attention_cases import (
    Case,
    assert_as_exact,
    cases,
    kinds,
    plain_attention,
    random_case,
    windows,
)

pytestmark = pytest.mark.usefixtures("attention_tiles")


def gradients(case: Case, output: Any, weights: torch.Tensor) -> list[torch.Tensor]:
    """Return dq, dk, dv, and dsinks if the case has sinks, of Σ weights · output(case)."""
    inputs = [case.q, case.k, case.v]
    if case.options.get("sinks") is not None:
        inputs.append(case.options["sinks"])
    for x in inputs:
        x.requires_grad_()
    loss = (output(case) * weights.to(case.q.device, case.q.dtype)).sum()
    return list(torch.autograd.grad(loss, inputs))


def weights_for(case: Case) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*case.q.shape[:2], case.v.shape[2], generator=generator)


def differences(case: Case) -> float:
    """The size of dq and dk before dP − delta cancels; for a query that sees one key, only rounding remains of them."""
    weights, v = weights_for(case), case.v.detach().cpu()
    products = torch.einsum("ihd,jgd->ijhg", weights, v).abs().max().item() / (1 - case.options["dropout_p"])
    return float(case.options["scale"] * products * max(x.abs().max().item() for x in (case.q, case.k)))


@given(data=st.data())
@settings(max_examples=examples(14))
def test_gradients_match_the_definition(data: st.DataObject, device: str) -> None:
    case = data.draw(cases(device))
    weights = weights_for(case)
    found = gradients(case.to(torch.float32), Case.run, weights)
    exact = gradients(case.to(torch.float64), Case.reference, weights)
    same_precision = gradients(case.to(torch.float32), Case.reference, weights)
    rounding = 4e-6 * max(x.abs().max().item() for x in exact) + 4 * torch.finfo(torch.float32).eps * differences(case)
    for name, f, e, s in zip(("dq", "dk", "dv", "dsinks"), found, exact, same_precision, strict=False):
        error, theirs = (x.cpu().double() - e for x in (f, s))
        assert error.abs().max() <= 2 * theirs.abs().max() + rounding, name


@pytest.mark.sampled
@pytest.mark.parametrize("causal", [False, True])
def test_every_window_begins_and_ends_where_it_should(causal: bool, device: str, attention_tiles: str) -> None:
    for window in windows(attention_tiles):
        case = random_case([70], device, all_heads=(1, 1, 1), causal=causal, window=window)
        weights = weights_for(case)
        expected = gradients(case, Case.reference, weights)
        torch.testing.assert_close(gradients(case, Case.run, weights), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", kinds(dropout=False))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gradients_are_as_exact_as_pytorch_can_be(
    dtype: torch.dtype, options: dict[str, Any], device: str
) -> None:
    case = random_case([5, 33, 70, 1], device, dtype, **options)
    weights = weights_for(case).to(dtype).float()
    found = gradients(case, Case.run, weights)
    expected = gradients(case.to(torch.float64), Case.reference, weights.double())
    same_precision = gradients(case.to(dtype), plain_attention, weights)
    for f, e, s in zip(found, expected, same_precision, strict=True):
        assert_as_exact(f, e, s)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # from NumPy, in the interpreter
@pytest.mark.parametrize("options", kinds())
def test_a_nan_stays_in_its_sequence(options: dict[str, Any], device: str) -> None:
    case = random_case([4, 4, 4, 40], device, **options)
    weights = weights_for(case)
    clean = gradients(case, Case.run, weights)
    with torch.no_grad():
        for x in (case.q, case.k, case.v, weights):
            x[4:8] = torch.nan
    poisoned = gradients(case, Case.run, weights)
    others = torch.tensor([*range(4), *range(8, 52)], device=device)
    for c, p in zip(clean[:3], poisoned[:3], strict=True):
        assert p[4:8].isnan().all()
        assert torch.equal(p[others], c[others])


@pytest.mark.slow
@pytest.mark.parametrize("options", kinds())
def test_the_same_bits_come_again(options: dict[str, Any], device: str) -> None:
    case = random_case([3, 70 if THOROUGH else 40, 20], device, **options)
    first, second = (gradients(case, Case.run, weights_for(case)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradients_that_arrive_with_any_strides_are_taken(device: str) -> None:
    case = random_case([3, 40], device)
    weights = weights_for(case).to(device)
    expected = gradients(case, Case.run, weights)
    output = case.run()
    scattered = torch.stack([weights, torch.full_like(weights, torch.nan)], dim=-1)[..., 0]
    found = torch.autograd.grad(output, [case.q, case.k, case.v], scattered)
    torch.testing.assert_close(list(found), expected)


def test_gradients_of_the_definition_are_right() -> None:
    plan = AttentionPlan.build([1, 3])
    q, k, v = (torch.randn(4, heads, 2, dtype=torch.float64, requires_grad=True) for heads in (2, 1, 1))
    sinks = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def definition(*inputs: torch.Tensor) -> torch.Tensor:
        q, k, v, sinks = inputs
        return attention_reference(
            q, k, v, plan, scale=0.7, causal=True, window=2, softcap=2.0, sinks=sinks, dropout_p=0.25, seed=1
        )

    assert torch.autograd.gradcheck(definition, (q, k, v, sinks))


def test_sinks_of_another_dtype_get_their_own(device: str) -> None:
    case = random_case([3, 40], device, torch.float16, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0]))
    found = gradients(case, Case.run, weights_for(case))
    assert [x.dtype for x in found] == [torch.float16] * 3 + [torch.float32]
