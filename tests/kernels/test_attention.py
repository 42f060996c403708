from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvec_kernels import AttentionPlan, attention, attention_reference
from fastvec_kernels.attention import torch_ops
from tests.kernels import examples
from tests.kernels.attention_cases import (
    Case,
    assert_as_exact,
    cases,
    kinds,
    plain_attention,
    random_case,
    score_rounding,
    windows,
)

pytestmark = pytest.mark.usefixtures("attention_tiles")


def test_the_definition_on_numbers_worked_by_hand() -> None:
    q = torch.tensor([[[1.0]], [[2.0]], [[1.0]]])
    k = torch.tensor([[[0.0]], [[torch.tensor(3.0).log().item()]], [[5.0]]])
    v = torch.tensor([[[1.0]], [[5.0]], [[7.0]]])
    plan = AttentionPlan.build([2, 1])

    both = attention_reference(q, k, v, plan, scale=1.0)  # weights 1:3 and 1:9
    causal = attention_reference(q, k, v, plan, scale=1.0, causal=True)
    with_sink = attention_reference(q, k, v, plan, scale=1.0, sinks=torch.zeros(1))  # adds weight 1 without a value

    torch.testing.assert_close(both.flatten(), torch.tensor([(1 + 15) / 4, (1 + 45) / 10, 7.0]))
    torch.testing.assert_close(causal.flatten(), torch.tensor([1.0, (1 + 45) / 10, 7.0]))
    sink_of_the_last = torch.tensor(5.0).exp() / (1 + torch.tensor(5.0).exp()) * 7
    torch.testing.assert_close(with_sink.flatten(), torch.tensor([16 / 5, 46 / 11, sink_of_the_last]))


@given(data=st.data())
@settings(max_examples=examples(30))
def test_attention_matches_the_reference(data: st.DataObject, device: str) -> None:
    case = data.draw(cases(device))
    output = case.run()
    assert output.shape == (*case.q.shape[:2], case.v.shape[2])
    assert_as_exact(output, case.to(torch.float64).reference(), case.reference(), score_rounding(case))


@pytest.mark.sampled
@pytest.mark.parametrize("causal", [False, True])
def test_every_window_begins_and_ends_where_it_should(causal: bool, device: str, attention_tiles: str) -> None:
    for window in windows(attention_tiles):
        case = random_case([70], device, all_heads=(1, 1, 1), causal=causal, window=window)
        torch.testing.assert_close(case.run(), case.reference(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", kinds(dropout=False))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_exact_as_pytorch_can_be(dtype: torch.dtype, options: dict[str, Any], device: str) -> None:
    case = random_case([5, 33, 33, 1], device, dtype, **options)
    output = case.run()
    assert output.dtype == dtype
    assert_as_exact(output, case.to(torch.float64).reference(), plain_attention(case))


def test_sinks_may_have_a_stride(device: str) -> None:
    spread = torch.tensor([0.5, torch.nan, -1.0, torch.nan, 2.0, torch.nan, 0.0, torch.nan])
    case = random_case([5, 20], device, sinks=spread)
    case.options["sinks"] = case.options["sinks"][::2]
    torch.testing.assert_close(case.run(), case.reference(), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # from NumPy, in the interpreter
@pytest.mark.parametrize("options", kinds())
def test_a_nan_stays_in_its_sequence(options: dict[str, Any], device: str) -> None:
    case = random_case([4, 4, 4, 40], device, **options)
    clean = case.run()
    for x in (case.q, case.k, case.v):
        x[4:8] = torch.nan
    poisoned = case.run()
    assert poisoned[4:8].isnan().all()
    others = torch.tensor([*range(4), *range(8, 52)], device=device)
    assert torch.equal(poisoned[others], clean[others])


@pytest.mark.parametrize("options", kinds())
def test_a_sequence_attends_the_same_alone_and_in_any_order(options: dict[str, Any], device: str) -> None:
    lengths = [1, 7, 7, 40]
    case = random_case(lengths, device, **options)
    packed = torch.split(case.run(), lengths)
    q, k, v = (torch.split(x, lengths) for x in (case.q, case.k, case.v))

    def run(order: list[int]) -> torch.Tensor:
        plan = AttentionPlan.build([lengths[index] for index in order], device, sequence_ids=order)
        inputs = [torch.cat([x[index] for index in order]) for x in (q, k, v)]
        return attention(inputs[0], inputs[1], inputs[2], plan, **case.options)

    for index in range(len(lengths)):
        torch.testing.assert_close(run([index]), packed[index])
    order = [2, 0, 3, 1]
    torch.testing.assert_close(run(order), torch.cat([packed[index] for index in order]))


@pytest.mark.parametrize("options", kinds())
def test_the_same_bits_come_again(options: dict[str, Any], device: str) -> None:
    case = random_case([3, 70, 20], device, **options)
    assert torch.equal(case.run(), case.run())


def test_scores_larger_than_memory_should_hold_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case([6] * 5 + [9], "cpu", softcap=2.0, dropout_p=0.25, seed=3)
    whole = attention_torch(case)
    monkeypatch.setattr(torch_ops, "SCORES_AT_ONCE", 2 * 4 * 6 * 6)  # fits two sequences of 6 tokens, none of 9
    torch.testing.assert_close(attention_torch(case), whole)


def attention_torch(case: Case) -> torch.Tensor:
    """Run PyTorch's operations, whichever implementation is under test."""
    options = {"causal": False, "window": None, "sinks": None, **case.options}
    output: torch.Tensor = torch_ops.attention_torch(case.q, case.k, case.v, case.plan, **options)
    return output


def test_a_head_wider_than_the_kernels_serve_runs_on_pytorch(device: str) -> None:
    plan = AttentionPlan.build([2, 3], device)
    q, k, v = (torch.randn(5, heads, 320, device=device) for heads in (2, 1, 1))
    expected = attention_reference(q, k, v, plan, scale=0.1)
    torch.testing.assert_close(attention(q, k, v, plan, scale=0.1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.ones(5, 4, 8)}, r"needs q \[T, H, D\], .* got q \(5, 4, 8\), k \(5, 2, 16\)"),
        ({"v": torch.ones(5, 4, 16)}, r"needs q \[T, H, D\], .* v \(5, 4, 16\)"),
        (
            {"q": torch.ones(4, 4, 16)},
            r"needs the same number of tokens in q, k and v, got q \(4, 4, 16\), k \(5, 2, 16\)",
        ),
        ({"plan": AttentionPlan.build([2, 4])}, "plan is for 6 tokens, but q has 5"),
        ({"q": torch.ones(5, 3, 16)}, "needs query heads in a multiple of the 2 key heads, got 3"),
        ({"v": torch.ones(5, 2, 16).half()}, "needs the same dtype for q, k and v, got .* v torch.float16"),
        ({"sinks": torch.ones(2)}, r"needs one sink for each of 4 heads, got \(2,\)"),
        ({"scale": 0.0}, r"needs a positive scale, got 0\.0"),
        ({"window": 0}, "needs a window of at least one token, got 0"),
        ({"softcap": 0.0}, r"needs a positive softcap, got 0\.0"),
        ({"dropout_p": 1.0}, r"needs a dropout probability of at least 0 and below 1, got 1\.0"),
        ({"seed": -1}, "needs a seed from 0 to 2\\^63 - 1, got -1"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    case = random_case([2, 3], "cpu")
    arguments = {"q": case.q, "k": case.k, "v": case.v, "plan": case.plan, "scale": 0.25, **change}
    with pytest.raises(ValueError, match=f"attention {message}"):
        attention(**arguments)
