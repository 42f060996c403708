"""Packed batches, references and tolerances for the tests of attention."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from fastvec_kernels import AttentionPlan, attention, attention_reference
from fastvec_kernels.attention.parts import Tile
from tests import THOROUGH

LENGTHS = st.lists(
    st.one_of(st.just(1), st.integers(2, 9), st.sampled_from([15, 16, 17, 31, 32, 33, 63, 64, 65, 70])),
    min_size=1,
    max_size=5,
)
# most test sequences fit into one shipped tile; with these, all loops take several steps and both classes occur
SMALL_TILES: dict[str, tuple[Tile, ...]] = {
    "forward_long": (Tile(32, 16, 4, 1),),
    "forward_32": (Tile(16, 32, 4, 1),),
    "forward_64": (),
    "forward_128": (),
    "rotary_32": (Tile(16, 32, 4, 1),),
    "rotary_64": (),
    "rotary_128": (),
    "backward_rows": (Tile(32, 16, 4, 1),),
    "backward_keys": (Tile(16, 32, 4, 1),),
    "backward_32": (Tile(16, 32, 4, 1),),
    "backward_64": (),
    "backward_128": (),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    plan: AttentionPlan
    options: dict[str, Any]

    def run(self) -> torch.Tensor:
        return attention(self.q, self.k, self.v, self.plan, **self.options)

    def to(self, dtype: torch.dtype) -> "Case":
        """Return the case in another dtype; float64, which the reference uses, is moved to the CPU."""
        device = "cpu" if dtype == torch.float64 else self.q.device
        sinks = self.options.get("sinks")
        return replace(
            self,
            q=self.q.to(device, dtype),
            k=self.k.to(device, dtype),
            v=self.v.to(device, dtype),
            plan=AttentionPlan.build(self.plan.lengths, device, sequence_ids=self.plan.sequence_ids.tolist()),
            options={**self.options, "sinks": None if sinks is None else sinks.to(device, dtype)},
        )

    def reference(self) -> torch.Tensor:
        return attention_reference(self.q, self.k, self.v, self.plan, **self.options)


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """Return the same values with other strides, as model families pass them, with NaN in the gaps."""
    if layout == "heads first":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "slice of a fused product":
        return torch.cat([torch.full_like(x, torch.nan), x], dim=1)[:, x.shape[1] :]
    if layout == "every second number":
        return torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[..., 0]
    return x


@st.composite
def cases(draw: st.DrawFn, device: str) -> Case:
    lengths = draw(LENGTHS)
    if draw(st.booleans()):
        lengths.sort()  # as in a real batch: equal lengths are adjacent
    kv_heads, group = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2, 5]))
    head_dim, value_dim = draw(st.sampled_from([(8, 8), (16, 16), (80, 80), (24, 12), (8, 24)]))
    causal = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    layouts = ["contiguous", "heads first", "slice of a fused product", "every second number"]

    def random(heads: int, size: int) -> torch.Tensor:
        x = torch.randn(sum(lengths), heads, size, generator=generator).to(device)
        return laid_out(x, draw(st.sampled_from(layouts)))

    options = {
        "scale": draw(st.sampled_from([head_dim**-0.5, 1.0])),
        "causal": causal,
        "window": draw(st.one_of(st.none(), st.integers(1, 40))),
        "softcap": draw(st.sampled_from([None, 3.0])),
        "sinks": torch.randn(kv_heads * group, generator=generator).to(device) if draw(st.booleans()) else None,
        "dropout_p": draw(st.sampled_from([0.0, 0.3])),
        "seed": draw(st.integers(0, 2**63 - 1)),
    }
    return Case(
        q=random(kv_heads * group, head_dim),
        k=random(kv_heads, head_dim),
        v=random(kv_heads, value_dim),
        plan=AttentionPlan.build(lengths, device),
        options=options,
    )


def random_case(
    lengths: list[int],
    device: str,
    dtype: torch.dtype = torch.float32,
    *,
    all_heads: tuple[int, int, int] = (4, 2, 2),
    **options: Any,
) -> Case:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), heads, 16, generator=generator).to(device, dtype) for heads in all_heads)
    if "sinks" in options:
        options["sinks"] = options["sinks"].clone().to(device)
    return Case(q=q, k=k, v=v, plan=AttentionPlan.build(lengths, device), options={"scale": 0.25, **options})


def windows(tiles: str) -> list[int]:
    """Window sizes for 70 tokens, to end at every position in a tile of 16 keys, around 32 rows and at the last keys.

    A shipped tile holds all 70 keys, so it needs fewer sizes.
    """
    found = [*(range(1, 18) if tiles == "small" else (1, 2)), 31, 32, 33, 68, 69, 70]
    return found if THOROUGH else [window for window in found if window in (1, 16, 17, 33, 70)]


KINDS: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"window": 3},
    {"causal": True, "window": 3},
    {"softcap": 2.0},
    {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    {"dropout_p": 0.25, "seed": 7},
    {
        "causal": True,
        "window": 3,
        "softcap": 2.0,
        "sinks": torch.tensor([0.5, -1.0, 2.0, 0.0]),
        "dropout_p": 0.25,
        "seed": 2**62,
    },
]


def kind_name(options: dict[str, Any]) -> str:
    return "+".join(options) or "plain"


def kinds(*, dropout: bool = True) -> list[Any]:
    """The kinds of attention as test parameters: all rules at once and, marked slow, no rule and each one alone."""
    leave_out = () if dropout else ("dropout_p", "seed")
    found = [{name: value for name, value in kind.items() if name not in leave_out} for kind in KINDS]
    by_name = {kind_name(kind): kind for kind in found}
    at_once = kind_name(found[-1])
    return [
        pytest.param(kind, id=name, marks=() if name == at_once else pytest.mark.slow) for name, kind in by_name.items()
    ]


def plain_attention(case: Case) -> torch.Tensor:
    """PyTorch's result in the inputs' own precision: every step of the definition is rounded to their dtype."""
    ends = itertools.accumulate(case.plan.lengths, initial=0)
    group = case.q.shape[1] // case.k.shape[1]
    options, sinks = case.options, case.options.get("sinks")
    outputs = []
    for a, b in itertools.pairwise(ends):
        q, k, v = case.q[a:b], case.k[a:b].repeat_interleave(group, 1), case.v[a:b].repeat_interleave(group, 1)
        scores = options["scale"] * torch.einsum("ihd,jhd->hij", q, k)
        if softcap := options.get("softcap"):
            scores = softcap * torch.tanh(scores / softcap)
        behind = torch.arange(b - a)[:, None] - torch.arange(b - a)[None, :]
        window, causal = options.get("window") or b - a, options.get("causal", False)
        hidden = (behind < 0) | (behind >= window) if causal else behind.abs() > window
        scores = scores.masked_fill(hidden.to(scores.device), -torch.inf)
        if sinks is not None:
            scores = torch.cat([scores, sinks.to(scores.dtype)[:, None, None].expand(-1, b - a, 1)], -1)
        outputs.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1)[..., : b - a], v))
    return torch.cat(outputs)


def score_rounding(case: Case) -> float:
    """How far rounding the largest score once in float32 can move an output.

    With few tokens, PyTorch's own error can be small by chance. With scores of 25, twice its error was too tight for a
    sum in another order in one of 2,000 cases of 5 to 7 tokens.
    """
    q, k, v = (x.detach().cpu().double() for x in (case.q, case.k, case.v))
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    largest = case.options["scale"] * torch.einsum("ihd,jhd->hij", q, k).abs().max().item()
    softcap = case.options.get("softcap")
    largest = largest if softcap is None else min(largest, softcap)
    return float(torch.finfo(torch.float32).eps * largest * v.abs().max().item() / (1 - case.options["dropout_p"]))


def assert_as_exact(
    found: torch.Tensor, expected: torch.Tensor, same_precision: torch.Tensor, rounding: float = 0.0
) -> None:
    """Check FlashAttention's rule: at most twice the error of PyTorch in the same precision, plus rounding.

    It holds for every number and for the Frobenius norm. `rounding` is an additional absolute tolerance.
    """
    found, same_precision = found.cpu().double(), same_precision.cpu().double()
    eps = torch.finfo(same_precision.dtype if same_precision.dtype != torch.float64 else torch.float32).eps
    largest = expected.abs().max().item()
    allowed = 2 * (same_precision - expected).abs().max().item() + 4 * eps * largest + rounding
    assert found.isfinite().all()
    assert (found - expected).abs().max().item() <= allowed
    theirs, norm = (same_precision - expected).norm().item(), expected.norm().item()
    assert (found - expected).norm().item() <= 2 * theirs + eps * norm + rounding
