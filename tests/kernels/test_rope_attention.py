"""Rotary embeddings and attention in one kernel, against the references of both one after the other."""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastvec_kernels import AttentionPlan, _switch, rope_attention, rope_attention_reference
from fastvec_kernels._accuracy import compare
from fastvec_kernels._launch import INTERPRETED
from fastvec_kernels.attention.configs import CLASSES, override_tiles
from tests.kernels import examples, refuse, surrounded
from tests.kernels.attention_cases import SMALL_TILES, kinds

HEADS = [(1, 1), (4, 1), (6, 3), (5, 1)]
LENGTHS = st.lists(
    st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 32, 33, 63, 64, 65])), min_size=1, max_size=6
)
MODULE = import_module("fastvec_kernels.rope_attention")


@pytest.fixture
def in_one_kernel(only_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For calls that the kernel has to compute itself."""
    for name in ("rope", "attention"):
        monkeypatch.setattr(MODULE, name, refuse)


def make_inputs(
    lengths: list[int],
    device: str,
    *,
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 32,
    rotary_dim: int | None = None,
    dtype: torch.dtype = torch.float16,
    with_norm: bool = True,
    with_bias: bool = True,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Return arguments whose tensors are slices of buffers full of NaN."""
    generator = torch.Generator().manual_seed(seed)
    T, width, half = sum(lengths), (heads[0] + 2 * heads[1]) * head_dim, (rotary_dim or head_dim) // 2

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    table = torch.rand(max(lengths), half, generator=generator) * 6.3
    angles = torch.cat([table[:length] for length in lengths])
    if options.get("sinks") is not None:
        options["sinks"] = options["sinks"].to(device)
    return {
        "qkv": surrounded(random(T, width)),
        "cos": surrounded(angles.cos().to(device)),
        "sin": surrounded(angles.sin().to(device)),
        "plan": AttentionPlan.build(lengths, device),
        "heads": heads[0],
        "kv_heads": heads[1],
        "q_weight": random(head_dim) if with_norm else None,
        "k_weight": random(head_dim) if with_norm else None,
        "bias": random(width) if with_bias else None,
        "scale": head_dim**-0.5,
        **options,
    }


def every_second(x: torch.Tensor) -> torch.Tensor:
    """Return the same values as every second number of a buffer, with NaN between them."""
    return torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0]


def assert_right(inputs: dict[str, Any]) -> torch.Tensor:
    """Check for the result of the references, which round q, k, v and o to the dtype of qkv."""
    found, expected = rope_attention(**inputs), rope_attention_reference(**inputs)
    assert found.dtype == inputs["qkv"].dtype
    assert compare((found,), (expected.detach(),))[1] is None
    return found


@pytest.fixture(params=["shipped", "small"])
def tiles(request: pytest.FixtureRequest) -> Iterator[None]:
    """The tiles: the shipped ones, and small ones that need several steps for short sequences."""
    with override_tiles(**(SMALL_TILES if request.param == "small" else {})):
        yield


@given(
    lengths=LENGTHS,
    heads=st.sampled_from(HEADS),
    head_dim=st.sampled_from([32, 64, 128]),
    dtype=st.sampled_from([torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]),
    with_norm=st.booleans(),
    with_bias=st.booleans(),
    causal=st.booleans(),
    window=st.one_of(st.none(), st.integers(1, 40)),
    softcap=st.sampled_from([None, 3.0]),
    seed=st.integers(0, 999),
)
@settings(max_examples=examples(30), suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.usefixtures("only_kernels", "tiles")
def test_it_matches_the_references(lengths: list[int], device: str, **case: Any) -> None:
    inputs = make_inputs(lengths, device, **case)
    found = assert_right(inputs)
    assert torch.equal(found, rope_attention(**inputs))


@pytest.mark.usefixtures("in_one_kernel", "tiles")
@pytest.mark.parametrize("options", kinds(dropout=False))
def test_every_rule_of_attention_is_in_the_kernel(options: dict[str, Any], device: str) -> None:
    assert_right(make_inputs([5, 31, 18, 1], device, **options))


@pytest.mark.usefixtures("in_one_kernel")
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_every_class_of_sequences_on_the_shipped_tiles(head_dim: int, device: str) -> None:
    lengths = [length for limit in CLASSES for length in (limit, limit - 7)]
    inputs = make_inputs(lengths, device, heads=(4, 2), head_dim=head_dim, with_bias=False)
    assert_right(inputs)


@pytest.mark.usefixtures("in_one_kernel")
@pytest.mark.parametrize(("with_norm", "with_bias"), [(False, False), (True, False), (False, True)])
def test_bfloat16_with_what_a_family_has(with_norm: bool, with_bias: bool, device: str) -> None:
    inputs = make_inputs([3, 20, 40], device, dtype=torch.bfloat16, with_norm=with_norm, with_bias=with_bias)
    assert_right(inputs)


@pytest.mark.usefixtures("in_one_kernel")
def test_inputs_may_have_any_strides(device: str) -> None:
    inputs = make_inputs([5, 20], device, sinks=torch.randn(4))
    spread = {name: every_second(x) for name, x in inputs.items() if isinstance(x, torch.Tensor)}
    assert spread.keys() == {"qkv", "cos", "sin", "q_weight", "k_weight", "bias", "sinks"}
    assert torch.equal(rope_attention(**inputs | spread), rope_attention(**inputs))


@pytest.mark.usefixtures("in_one_kernel")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # from NumPy, in the interpreter
def test_a_nan_stays_in_its_sequence(device: str) -> None:
    inputs = make_inputs([4, 4, 4, 40], device)
    clean = rope_attention(**inputs)
    inputs["qkv"][4:8] = torch.nan
    poisoned = rope_attention(**inputs)
    assert poisoned[4:8].isnan().all()
    others = torch.tensor([*range(4), *range(8, 52)], device=device)
    assert torch.equal(poisoned[others], clean[others])


@pytest.mark.usefixtures("in_one_kernel")
def test_a_sequence_has_the_same_bits_alone_and_packed(device: str) -> None:
    inputs = make_inputs([9, 40, 20], device)
    packed = rope_attention(**inputs)
    part = {name: inputs[name][9:49] for name in ("qkv", "cos", "sin")}
    alone = rope_attention(**inputs | part | {"plan": AttentionPlan.build([40], device)})
    assert torch.equal(packed[9:49], alone)


def with_gradient(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda inputs: inputs | {name: inputs[name].clone().requires_grad_()}


@pytest.mark.usefixtures("only_kernels")
@pytest.mark.parametrize(
    ("lengths", "options", "change"),
    [
        pytest.param([20, 129], {}, dict, id="too long"),
        pytest.param([20], {"dtype": torch.float32}, dict, id="float32"),
        pytest.param([20], {"head_dim": 48}, dict, id="no power of two"),
        pytest.param([20], {"head_dim": 16}, dict, id="too small for its halves"),
        pytest.param([20], {"head_dim": 64, "rotary_dim": 32}, dict, id="rotated in part"),
        pytest.param([20], {"head_dim": 256}, dict, id="without a tile"),
        pytest.param([20], {"head_dim": 512}, dict, id="wider than attention's tiles"),
        pytest.param([20], {"head_dim": 256, "dtype": torch.float32}, dict, id="wider than attention's, float32"),
        pytest.param([20], {}, with_gradient("qkv"), id="gradient"),
        pytest.param([20], {}, with_gradient("k_weight"), id="gradient of a weight"),
        pytest.param([20], {}, with_gradient("bias"), id="gradient of the bias"),
    ],
)
def test_what_the_kernel_does_not_compute_runs_one_after_the_other(
    lengths: list[int],
    options: dict[str, Any],
    change: Callable[[dict[str, Any]], dict[str, Any]],
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = change(make_inputs(lengths, device, **options))
    monkeypatch.setattr(MODULE, "launch", refuse)
    assert_right(inputs)


@pytest.mark.usefixtures("only_kernels")
@pytest.mark.parametrize("name", ["rope", "attention", "rope_attention"])
def test_a_switched_op_is_not_in_the_kernel(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs([5, 20], device)
    monkeypatch.setattr(_switch, "_on_torch", {name: "a test"})
    monkeypatch.setattr(MODULE, "launch", refuse)
    assert_right(inputs)


def test_it_differentiates(device: str) -> None:
    inputs = make_inputs([3, 5], device, dtype=torch.float32)
    upstream = torch.randn(8, 4, 32, generator=torch.Generator().manual_seed(1)).to(device)
    qkv = inputs["qkv"].clone().requires_grad_()
    found, expected = (
        torch.autograd.grad(op(**inputs | {"qkv": qkv}), qkv, upstream)[0]
        for op in (rope_attention, rope_attention_reference)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_weight": None}, "rope needs the norm weights of both"),
        ({"plan": AttentionPlan.build([9])}, "the attention plan is for 9 tokens, but q has 8"),
        ({"window": 0}, "attention needs a window of at least one token"),
        ({"softcap": -1.0}, "attention needs a positive softcap"),
        ({"scale": 0.0}, "attention needs a positive scale"),
        ({"sinks": torch.zeros(3)}, "attention needs one sink for each of 4 heads"),
        (
            {"heads": 3, "kv_heads": 2, "qkv": torch.zeros(8, 7 * 32), "bias": None},
            "query heads in a multiple of the 2",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str, device: str) -> None:
    inputs = make_inputs([3, 5], device)
    with pytest.raises(ValueError, match=message):
        rope_attention(**inputs | change)
