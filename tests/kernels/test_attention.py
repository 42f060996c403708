import itertools
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvec_kernels import AttentionPlan, attention, attention_reference

LENGTHS = st.lists(st.one_of(st.just(1), st.integers(2, 9), st.sampled_from([31, 32, 33, 70])), min_size=1, max_size=7)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    plan: AttentionPlan
    options: dict[str, Any]


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values with other strides, as the families hand them over."""
    if layout == "heads first":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "slice of a fused product":
        return torch.cat([torch.full_like(x, torch.nan), x], dim=1)[:, x.shape[1] :]
    return x


@st.composite
def cases(draw: st.DrawFn) -> Case:
    lengths = draw(LENGTHS)
    if draw(st.booleans()):
        lengths.sort()  # as a batch arrives: equal lengths stand together
    kv_heads, group = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 5]))
    head_dim, value_dim = draw(st.sampled_from([(8, 8), (16, 16), (80, 80), (24, 12), (8, 24)]))
    causal = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))

    def random(heads: int, size: int) -> torch.Tensor:
        x = torch.randn(sum(lengths), heads, size, generator=generator)
        return laid_out(x, draw(st.sampled_from(["contiguous", "heads first", "slice of a fused product"])))

    options = {
        "scale": draw(st.sampled_from([head_dim**-0.5, 1.0])),
        "causal": causal,
        "window": draw(st.one_of(st.none(), st.integers(1, 40))),
        "softcap": draw(st.sampled_from([None, 3.0])),
        "sinks": torch.randn(kv_heads * group, generator=generator) if draw(st.booleans()) else None,
    }
    return Case(
        q=random(kv_heads * group, head_dim),
        k=random(kv_heads, head_dim),
        v=random(kv_heads, value_dim),
        plan=AttentionPlan.build(lengths),
        options=options,
    )


def random_case(lengths: list[int], dtype: torch.dtype = torch.float32, **options: Any) -> Case:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), heads, 16, generator=generator, dtype=dtype) for heads in (4, 2, 2))
    return Case(q=q, k=k, v=v, plan=AttentionPlan.build(lengths), options={"scale": 0.25, **options})


KINDS: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"window": 3},
    {"causal": True, "window": 3},
    {"softcap": 2.0},
    {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    {"causal": True, "window": 3, "softcap": 2.0, "sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])},
]


def kind_name(options: dict[str, Any]) -> str:
    return "+".join(options) or "plain"


def test_the_definition_on_numbers_worked_by_hand() -> None:
    q = torch.tensor([[[1.0]], [[2.0]], [[1.0]]])
    k = torch.tensor([[[0.0]], [[torch.tensor(3.0).log().item()]], [[5.0]]])
    v = torch.tensor([[[1.0]], [[5.0]], [[7.0]]])
    plan = AttentionPlan.build([2, 1])

    both = attention_reference(q, k, v, plan, scale=1.0)  # weights 1:3 and 1:9
    causal = attention_reference(q, k, v, plan, scale=1.0, causal=True)
    with_sink = attention_reference(q, k, v, plan, scale=1.0, sinks=torch.zeros(1))  # one more share of 1, no value

    torch.testing.assert_close(both.flatten(), torch.tensor([(1 + 15) / 4, (1 + 45) / 10, 7.0]))
    torch.testing.assert_close(causal.flatten(), torch.tensor([1.0, (1 + 45) / 10, 7.0]))
    sink_of_the_last = torch.tensor(5.0).exp() / (1 + torch.tensor(5.0).exp()) * 7
    torch.testing.assert_close(with_sink.flatten(), torch.tensor([16 / 5, 46 / 11, sink_of_the_last]))


@given(case=cases())
@settings(max_examples=150)
def test_attention_matches_the_reference(case: Case) -> None:
    expected = attention_reference(case.q, case.k, case.v, case.plan, **case.options)
    output = attention(case.q, case.k, case.v, case.plan, **case.options)
    assert output.shape == (*case.q.shape[:2], case.v.shape[2])
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", KINDS, ids=kind_name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_exact_as_pytorch_can_be(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """FlashAttention's rule: at most twice the error of a plain computation in the same precision."""
    case = random_case([5, 33, 33, 1], dtype, **options)
    q, k, v = case.q, case.k, case.v
    expected = attention_reference(q.float(), k.float(), v.float(), case.plan, **case.options)

    def in_dtype_throughout(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """One sequence, every step rounded to `dtype`; window, causality and softcap as in the definition."""
        scores = 0.25 * torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(2, 1))
        if softcap := options.get("softcap"):
            scores = softcap * torch.tanh(scores / softcap)
        behind = torch.arange(len(q))[:, None] - torch.arange(len(q))[None, :]
        window, causal = options.get("window", len(q)), options.get("causal", False)
        scores = scores.masked_fill((behind < 0) | (behind >= window) if causal else behind.abs() > window, -torch.inf)
        if "sinks" in options:
            scores = torch.cat([scores, options["sinks"].to(dtype)[:, None, None].expand(-1, len(q), 1)], -1)
        return torch.einsum("hij,jhd->ihd", scores.softmax(-1)[..., : len(q)], v.repeat_interleave(2, 1))

    ends = itertools.accumulate(case.plan.lengths, initial=0)
    plain = torch.cat([in_dtype_throughout(q[a:b], k[a:b], v[a:b]) for a, b in itertools.pairwise(ends)])
    allowed = 2 * (plain.float() - expected).abs().max() + torch.finfo(dtype).eps
    output = attention(q, k, v, case.plan, **case.options)
    assert output.dtype == dtype
    assert (output.float() - expected).abs().max() <= allowed


@pytest.mark.parametrize("options", KINDS, ids=kind_name)
def test_a_nan_stays_in_its_sequence(options: dict[str, Any]) -> None:
    case = random_case([4, 4, 4, 9], **options)
    clean = attention(case.q, case.k, case.v, case.plan, **case.options)
    for x in (case.q, case.k, case.v):
        x[4:8] = torch.nan
    poisoned = attention(case.q, case.k, case.v, case.plan, **case.options)
    assert poisoned[4:8].isnan().all()
    others = torch.tensor([*range(4), *range(8, 21)])
    assert torch.equal(poisoned[others], clean[others])


@pytest.mark.parametrize("options", KINDS, ids=kind_name)
def test_a_sequence_attends_the_same_alone_and_in_any_order(options: dict[str, Any]) -> None:
    lengths = [1, 7, 7, 40]
    case = random_case(lengths, **options)
    packed = torch.split(attention(case.q, case.k, case.v, case.plan, **case.options), lengths)
    q, k, v = (torch.split(x, lengths) for x in (case.q, case.k, case.v))
    for index, length in enumerate(lengths):
        alone = attention(q[index], k[index], v[index], AttentionPlan.build([length]), **case.options)
        torch.testing.assert_close(packed[index], alone)
    order = [2, 0, 3, 1]
    q_permuted, k_permuted, v_permuted = (torch.cat([x[index] for index in order]) for x in (q, k, v))
    plan = AttentionPlan.build([lengths[index] for index in order])
    permuted = attention(q_permuted, k_permuted, v_permuted, plan, **case.options)
    torch.testing.assert_close(permuted, torch.cat([packed[index] for index in order]))


def test_scores_larger_than_memory_should_hold_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case([6] * 5 + [9], softcap=2.0)
    whole = attention(case.q, case.k, case.v, case.plan, **case.options)
    module = sys.modules[attention.__module__]  # the package's attribute of that name is the function
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 2 * 4 * 6 * 6)  # two sequences of 6 at a time, none of 9
    torch.testing.assert_close(attention(case.q, case.k, case.v, case.plan, **case.options), whole)


@pytest.mark.parametrize("options", KINDS, ids=kind_name)
def test_gradients_are_those_of_the_definition(options: dict[str, Any]) -> None:
    case = random_case([1, 4, 4, 6], torch.float64, **options)
    if "sinks" in options:
        case.options["sinks"] = options["sinks"].double().requires_grad_()
    inputs = [x.requires_grad_() for x in (case.q, case.k, case.v, case.options.get("sinks")) if x is not None]
    weights = torch.randn_like(case.q)
    expected = torch.autograd.grad(
        (attention_reference(case.q, case.k, case.v, case.plan, **case.options) * weights).sum(), inputs
    )
    found = torch.autograd.grad((attention(case.q, case.k, case.v, case.plan, **case.options) * weights).sum(), inputs)
    torch.testing.assert_close(found, expected)


def test_gradients_of_the_definition_are_right() -> None:
    plan = AttentionPlan.build([1, 3])
    q, k, v = (torch.randn(4, heads, 2, dtype=torch.float64, requires_grad=True) for heads in (2, 1, 1))
    sinks = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def definition(*inputs: torch.Tensor) -> torch.Tensor:
        q, k, v, sinks = inputs
        return attention_reference(q, k, v, plan, scale=0.7, causal=True, window=2, softcap=2.0, sinks=sinks)

    assert torch.autograd.gradcheck(definition, (q, k, v, sinks))


def test_a_plan_groups_neighbours_of_equal_length() -> None:
    plan = AttentionPlan.build([3, 3, 1, 3])
    assert plan.lengths == (3, 3, 1, 3)
    assert plan.runs == ((0, 2, 3), (6, 1, 1), (7, 1, 3))
    assert plan.cu_seqlens.tolist() == [0, 3, 6, 7, 10]
    assert plan.cu_seqlens.dtype == torch.int32
    assert plan.tokens == 10


@pytest.mark.parametrize("lengths", [[], [3, 0]])
def test_a_plan_needs_sequences(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="sequences of at least one token, got lengths"):
        AttentionPlan.build(lengths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.ones(5, 4, 8)}, r"needs q \[T, H, D\], .* got q \(5, 4, 8\), k \(5, 2, 16\)"),
        ({"v": torch.ones(5, 4, 16)}, r"needs q \[T, H, D\], .* v \(5, 4, 16\)"),
        ({"q": torch.ones(4, 4, 16)}, "needs the plan's 5 tokens"),
        ({"q": torch.ones(5, 3, 16)}, "needs a multiple of 2 key heads as query heads, got 3"),
        ({"v": torch.ones(5, 2, 16).half()}, "needs one dtype, got .* v torch.float16"),
        ({"sinks": torch.ones(2)}, r"needs one sink for each of 4 heads, got \(2,\)"),
        ({"window": 0}, "needs a window of at least one token, got 0"),
        ({"softcap": 0.0}, r"needs a positive softcap, got 0\.0"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    case = random_case([2, 3])
    arguments = {"q": case.q, "k": case.k, "v": case.v, "plan": case.plan, "scale": 0.25, **change}
    with pytest.raises(ValueError, match=f"attention {message}"):
        attention(**arguments)
