"""Attention in padded groups on a CPU: the groups, and that padding changes nothing."""

from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastvec_kernels import AttentionPlan, attention, attention_reference
from fastvec_kernels.attention import padded, torch_ops
from fastvec_kernels.attention.padded import MULTIPLE, WIDEST_SPREAD, group
from fastvec_kernels.attention.plan import Routes
from tests.kernels.attention_cases import Case, assert_as_exact, cases, plain_attention, random_case, score_rounding

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=40)
PADDED: Routes = ((10**6, "padded"),)


def in_groups(case: Case) -> Case:
    return replace(case, plan=AttentionPlan.build(case.plan.lengths, routes=PADDED))


@given(LENGTHS)
@example([512] * 4)
@example([1])
@example([8, 16, 16, 8])
def test_every_token_has_a_row_in_the_group_of_its_sequence(lengths: list[int]) -> None:
    grouping = group(tuple(lengths))
    sequence_of = np.repeat(np.arange(len(lengths)), lengths)
    tokens = np.concatenate(
        [
            np.arange(one.first, one.first + one.sequences * one.length) if one.rows is None else one.rows.numpy()
            for one in grouping.groups
        ]
    )
    places = np.arange(sum(lengths)) if grouping.places is None else grouping.places.numpy()
    assert np.array_equal(tokens[places], np.arange(sum(lengths)))  # so no two tokens share a row
    begin = 0
    for one in grouping.groups:
        rows = tokens[begin : begin + one.sequences * one.length].reshape(one.sequences, one.length)
        begin += rows.size
        own = sequence_of[rows]
        assert (own == own[:, :1]).all()  # padding is of the same sequence
        real = np.isin(np.arange(begin - rows.size, begin), places).reshape(rows.shape)
        bias = np.zeros(rows.shape) if one.bias is None else one.bias[:, 0].numpy()
        assert np.array_equal(bias == 0, real)
        assert (bias[~real] == -np.inf).all()
        assert (real.sum(axis=1) >= one.length - max(MULTIPLE, WIDEST_SPREAD * one.length)).all()
    assert begin == len(tokens)


@pytest.mark.parametrize("lengths", [[512, 512], [24], [7, 7], [1, 1, 1]])
def test_equal_lengths_need_no_gathering_unless_their_scores_would_be_slow(lengths: list[int]) -> None:
    (one,) = group(tuple(lengths)).groups
    assert (one.rows is None) == (lengths[0] % 8 == 0 or lengths[0] == 1)


@given(data=st.data())
@settings(max_examples=30)
def test_it_matches_the_reference(data: st.DataObject) -> None:
    case = in_groups(data.draw(cases("cpu")))
    assert_as_exact(case.run(), case.to(torch.float64).reference(), case.reference(), score_rounding(case))


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": 3}, {"causal": True, "window": 3}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_lengths_in_several_steps(
    options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = in_groups(random_case([40, 3, 33, 33, 1, 17, 40, 90, 88, 5], "cpu", dtype, **options))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(padded, "SCORE_BYTES", 3 * 2 * 48 * 48 * dtype.itemsize)  # three heads of 33 to 48 tokens
    assert_as_exact(case.run(), case.to(torch.float64).reference(), plain_attention(case))


def test_a_nan_stays_in_its_sequence() -> None:
    lengths = [20, 25, 22, 24]
    case = in_groups(random_case(lengths, "cpu"))
    clean = case.run()
    own = slice(20, 45)
    for x in (case.q, case.k, case.v):
        x[own] = torch.nan
    poisoned = case.run()
    assert poisoned[own].isnan().all()
    poisoned[own] = clean[own]
    assert torch.equal(poisoned, clean)


def test_a_gradient_is_recorded_though_groups_record_none() -> None:
    case = in_groups(random_case([5, 9, 7], "cpu"))
    case.q.requires_grad_()
    found, expected = (torch.autograd.grad(o.square().sum(), case.q)[0] for o in (case.run(), case.reference()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_longest_sequence_decides_the_route(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def recorded(q: torch.Tensor, *others: Any) -> torch.Tensor:
        taken.append(len(q))
        return padded.attention_padded(q, *others)

    monkeypatch.setattr(torch_ops, "attention_padded", recorded)
    for lengths in ([8, 3], [9, 2], [20, 4], [30]):
        q = torch.randn(sum(lengths), 2, 16)
        plan = AttentionPlan.build(lengths, routes=((8, "padded"), (16, "runs"), (24, "padded")))
        expected = attention_reference(q, q, q, plan, scale=0.25)
        torch.testing.assert_close(attention(q, q, q, plan, scale=0.25), expected, rtol=1e-5, atol=1e-5)
    assert taken == [11, 24]


@pytest.mark.parametrize(("amx", "longest"), [(True, 64), (False, padded.LONGEST)])
def test_without_a_measurement_bfloat16_is_grouped_where_sdpa_is_known_to_be_slow(
    amx: bool, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    torch_ops.default_routes.cache_clear()
    assert torch_ops.default_routes(torch.bfloat16) == ((longest, "padded"),)
    assert torch_ops.default_routes(torch.float32) == ()
    torch_ops.default_routes.cache_clear()


def test_groups_of_a_batch_are_made_once() -> None:
    lengths = tuple(accumulate([3] * 9))
    assert group(lengths) is group(lengths)
