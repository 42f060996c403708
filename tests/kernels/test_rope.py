from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvec_kernels import rope, rope_reference
from fastvec_kernels.rope.interface import _rope, _rope_backward
from fastvec_kernels.rope.kernels import Shape, Tiling
from tests.kernels import examples, surrounded

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
HEADS = [(1, 1), (4, 1), (14, 2), (16, 8), (9, 3)]
# (head size, rotary size); the last three are those of Phi, of GPT-NeoX and of no model
HEAD_SIZES = [(16, 16), (64, 64), (80, 80), (96, 96), (128, 128), (256, 256), (80, 32), (64, 16), (40, 6)]
cases = {
    "T": st.sampled_from([1, 2, 9, 17]),
    "heads": st.sampled_from(HEADS),
    "head_size": st.sampled_from(HEAD_SIZES),
    "with_norm": st.booleans(),
    "with_bias": st.booleans(),
    "dtype": st.sampled_from(DTYPES),
    "angle_dtype": st.sampled_from(DTYPES),
    "seed": st.integers(0, 999),
}


def in_the_same_precision(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    heads: int,
    kv_heads: int,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute as transformers does, rounding after every operation."""
    x = qkv if bias is None else qkv + bias
    head_dim = x.shape[1] // (heads + 2 * kv_heads)
    x = x.reshape(len(x), -1, head_dim)
    q, k, v = x[:, :heads], x[:, heads : heads + kv_heads], x[:, heads + kv_heads :]
    half = cos.shape[1]
    cos, sin = (torch.cat([angle, angle], 1)[:, None].to(qkv.dtype) for angle in (cos, sin))
    turned = []
    for y, weight in ((q, q_weight), (k, k_weight)):
        if weight is not None:
            wide = y.float()
            y = weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(y.dtype)
        part, rest = y[..., : 2 * half], y[..., 2 * half :]
        rotated_half = torch.cat([-part[..., half:], part[..., :half]], 2)
        turned.append(torch.cat([part * cos + rotated_half * sin, rest], 2))
    return turned[0], turned[1], v


def make_inputs(
    T: int,
    heads: tuple[int, int],
    head_size: tuple[int, int],
    with_norm: bool,
    with_bias: bool,
    dtype: torch.dtype,
    angle_dtype: torch.dtype,
    seed: int,
    device: str,
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    width, (head_dim, rotary_dim) = (heads[0] + 2 * heads[1]) * head_size[0], head_size

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    angles = torch.rand(T, rotary_dim // 2, generator=generator) * 6.3
    inputs = {"qkv": surrounded(random(T, width)), "heads": heads[0], "kv_heads": heads[1]}
    inputs |= {
        name: surrounded(f(angles).to(device, angle_dtype)) for name, f in (("cos", torch.cos), ("sin", torch.sin))
    }
    if with_norm:
        inputs |= {"q_weight": random(head_dim), "k_weight": random(head_dim)}
    return inputs | ({"bias": random(width)} if with_bias else {})


def in_float32(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: x.float() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}


def assert_no_worse(found: torch.Tensor, expected: torch.Tensor, same_precision: torch.Tensor) -> None:
    """Check for at most twice the error of PyTorch in the same precision, plus one rounding of the largest entry."""
    assert found.shape == expected.shape
    rounding = max(torch.finfo(found.dtype).eps, 2e-6) * expected.abs().max()
    error, allowed = (found.float() - expected).abs().max(), (same_precision.float() - expected).abs().max()
    assert error <= 2 * allowed + rounding


def gradients(op: Callable[..., Any], inputs: dict[str, Any], upstream: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    names = [name for name in ("qkv", "q_weight", "k_weight", "bias") if name in inputs]
    leaves = {name: inputs[name].detach().requires_grad_() for name in names}
    outputs = op(**(inputs | leaves))
    upstream = [gradient.to(out.dtype) for gradient, out in zip(upstream, outputs, strict=True)]
    found = torch.autograd.grad(outputs, list(leaves.values()), upstream)
    return dict(zip(names, found, strict=True))


@given(**cases)
@settings(max_examples=examples(20))
def test_rope_is_as_exact_as_pytorch(device: str, **case: Any) -> None:
    inputs = make_inputs(**case, device=device)
    found, expected = rope(**inputs), rope_reference(**in_float32(inputs))
    for out, *others in zip(found, expected, in_the_same_precision(**inputs), strict=True):
        assert out.dtype == case["dtype"]
        assert_no_worse(out, *others)
    assert all(torch.equal(a, b) for a, b in zip(found, rope(**inputs), strict=True))


@given(**cases)
@settings(max_examples=examples(20))
def test_gradients_are_as_exact_as_pytorch(device: str, **case: Any) -> None:
    inputs = make_inputs(**case, device=device)
    upstream = [torch.randn(out.shape).to(out) for out in rope(**inputs)]
    found, expected = gradients(rope, inputs, upstream), gradients(rope_reference, in_float32(inputs), upstream)
    same_precision, again = gradients(in_the_same_precision, inputs, upstream), gradients(rope, inputs, upstream)
    for name, gradient in found.items():
        assert gradient.dtype == case["dtype"]
        assert_no_worse(gradient, expected[name], same_precision[name])
        assert torch.equal(gradient, again[name])


def plain_case(device: str, T: int = 5, **change: Any) -> dict[str, Any]:
    case: dict[str, Any] = {"T": T, "heads": (4, 2), "head_size": (16, 16), "with_norm": True, "with_bias": False}
    return make_inputs(
        **case | {"dtype": torch.float32, "angle_dtype": torch.float32, "seed": 0} | change, device=device
    )


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("trained", ["qkv", "q_weight", "k_weight", "bias"])
def test_what_is_frozen_changes_no_gradient_of_the_rest(trained: str, with_bias: bool, device: str) -> None:
    inputs = plain_case(device, T=20, with_bias=with_bias)
    if trained not in inputs:
        return
    upstream = [torch.randn_like(out) for out in rope(**inputs)]
    leaf = inputs[trained].detach().requires_grad_()
    outputs = rope(**(inputs | {trained: leaf}))
    pairs = [(out, gradient) for out, gradient in zip(outputs, upstream, strict=True) if out.requires_grad]
    (found,) = torch.autograd.grad([out for out, _ in pairs], leaf, [gradient for _, gradient in pairs])
    torch.testing.assert_close(found, gradients(rope, inputs, upstream)[trained], rtol=1e-5, atol=1e-5)


def test_v_is_a_view_where_nothing_is_added_and_no_gradient_recorded(device: str) -> None:
    inputs = plain_case(device)
    qkv = inputs["qkv"]
    v = rope(**inputs)[2]
    assert v.data_ptr() == qkv[:, 6 * 16 :].data_ptr()
    assert torch.equal(v, qkv[:, 6 * 16 :].reshape(5, 2, 16))
    assert rope(**inputs, bias=torch.zeros_like(qkv[0]))[2].data_ptr() != v.data_ptr()


@pytest.mark.parametrize("op", [rope, rope_reference])
def test_the_definition_on_numbers_worked_by_hand(op: Callable[..., Any], device: str) -> None:
    quarter = {"cos": torch.zeros(1, 1, device=device), "sin": torch.ones(1, 1, device=device)}
    qkv = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]], device=device)
    q, k, v = op(qkv, **quarter, heads=1, kv_heads=1)
    assert (q.tolist(), k.tolist(), v.tolist()) == ([[[-2.0, 1.0, 3.0]]], [[[-5.0, 4.0, 6.0]]], [[[7.0, 8.0, 9.0]]])
    bias = torch.tensor([0.0, 5.0, -3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], device=device)
    weights = {"q_weight": torch.tensor([1.0, 2.0, 3.0], device=device), "k_weight": torch.zeros(3, device=device)}
    q, k, v = op(qkv, **quarter, heads=1, kv_heads=1, bias=bias, **weights, eps=1e-9)
    # (1, 7, 0) divided by the root of 50 / 3, times the weight, rotated by a quarter turn
    torch.testing.assert_close(q.cpu(), torch.tensor([[[-3.4292856, 0.2449490, 0.0]]]))
    assert (k.abs().tolist(), v.tolist()) == ([[[0.0, 0.0, 0.0]]], [[[7.0, 8.0, 10.0]]])


def test_no_tokens_give_no_rows(device: str) -> None:
    inputs = plain_case(device, T=0)
    assert [tuple(out.shape) for out in rope(**inputs)] == [(0, 4, 16), (0, 2, 16), (0, 2, 16)]


@pytest.mark.parametrize("rotary_dim", [6, 4])
def test_the_references_gradients_are_right(rotary_dim: int) -> None:
    inputs = plain_case("cpu", heads=(2, 1), head_size=(6, rotary_dim), with_bias=True, T=2)
    names = ("qkv", "q_weight", "k_weight", "bias")
    leaves = [inputs[name].double().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(lambda *x: rope_reference(**(inputs | dict(zip(names, x, strict=True)))), leaves)


@pytest.mark.slow
@pytest.mark.usefixtures("only_kernels")
@pytest.mark.parametrize("with_norm", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_custom_operators_are_well_formed(with_norm: bool, with_bias: bool, device: str) -> None:
    inputs = plain_case(device, with_norm=with_norm, with_bias=with_bias)
    tensors = [inputs.get(name) for name in ("qkv", "cos", "sin", "q_weight", "k_weight", "bias")]
    qkv, cos, sin, q_weight, k_weight, bias = (x if x is None else x.contiguous() for x in tensors)
    trained = [x if x is None else x.detach().requires_grad_() for x in (qkv, q_weight, k_weight, bias)]
    torch.library.opcheck(_rope, (trained[0], cos, sin, *trained[1:], 4, 2, 1e-6, True))
    gradients = rope(**inputs)
    torch.library.opcheck(
        _rope_backward,
        (*gradients, qkv if with_norm else None, cos, sin, q_weight, k_weight, bias, 1e-6, with_norm, with_bias),
    )


@pytest.mark.parametrize("with_bias", [True, False])
def test_compiled_forward_and_backward_give_the_same(with_bias: bool, device: str) -> None:
    inputs = plain_case(device, with_bias=with_bias)
    compiled = torch.compile(rope, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs), rope(**inputs), rtol=0, atol=0)
    upstream = [torch.randn_like(out) for out in rope(**inputs)]
    found, expected = gradients(compiled, inputs, upstream), gradients(rope, inputs, upstream)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("heads", [*HEADS, (32, 8), (64, 8)])
@pytest.mark.parametrize("head_size", [*HEAD_SIZES, (512, 512), (1024, 2)])
def test_every_head_is_in_one_group_and_a_tile_in_few_registers(
    heads: tuple[int, int], head_size: tuple[int, int]
) -> None:
    shape = Shape(heads=heads[0], kv_heads=heads[1], head_dim=head_size[0], half=head_size[1] // 2)
    tiling = Tiling.of(shape)
    assert (tiling.q_groups - 1) * tiling.block_heads < heads[0] <= tiling.q_groups * tiling.block_heads
    assert (tiling.kv_groups - 1) * tiling.block_heads < heads[1] <= tiling.kv_groups * tiling.block_heads
    assert tiling.tokens * tiling.block_heads * tiling.block_half <= 1024
    assert tiling.tokens * tiling.block_heads * tiling.block_rest <= 4096


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.ones(5, 130)}, r"needs qkv .* got \(5, 130\) for 4 and 2 heads"),
        ({"heads": 0}, r"needs qkv .* got \(5, 128\) for 0 and 2 heads"),
        (
            {"cos": torch.ones(5, 9), "sin": torch.ones(5, 9)},
            r"needs cos .* \[5, .* 1 to 8\], got \(5, 9\) and \(5, 9\)",
        ),
        ({"cos": torch.ones(4, 8)}, r"needs cos and sin \[5, .* 1 to 8\], got \(4, 8\) and \(5, 8\)"),
        ({"k_weight": None}, "needs the norm weights of both q and k, or of neither"),
        ({"k_weight": torch.ones(8)}, r"needs norm weights of \(16,\), got \(8,\)"),
        ({"bias": torch.ones(16)}, r"needs a bias of \(128,\), got \(16,\)"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str, device: str) -> None:
    with pytest.raises(ValueError, match=f"rope {message}"):
        rope(**(plain_case(device) | change))
