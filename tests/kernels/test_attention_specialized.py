"""The warp-specialized kernel for Hopper, run in the interpreter: its results, not its speed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvec_kernels import AttentionPlan, attention, attention_reference
from fastvec_kernels.attention.configs import override_tiles
from fastvec_kernels.attention.parts import Tile
from fastvec_kernels.attention.specialized import fits_descriptors
from tests.kernels import examples
from tests.kernels.attention_cases import Case, assert_as_exact

pytestmark = pytest.mark.usefixtures("only_kernels")

TILES: dict[str, tuple[Tile, ...]] = {
    "forward_long": (Tile(32, 16, 4, 1, path="specialized"),),
    "forward_32": (),
    "forward_64": (),
    "forward_128": (),
}
POINTERS_TOO = {**TILES, "forward_long": (*TILES["forward_long"], Tile(32, 16, 4, 1))}


def half_case(lengths: list[int], heads: int, kv_heads: int, head_dim: int, causal: bool, device: str) -> Case:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(sum(lengths), n, head_dim, generator=generator).half().to(device)
        for n in (heads, kv_heads, kv_heads)
    )
    options = {"scale": head_dim**-0.5, "causal": causal}
    return Case(q=q, k=k, v=v, plan=AttentionPlan.build(lengths, device), options=options)


@given(
    lengths=st.lists(st.sampled_from([1, 7, 15, 16, 17, 31, 32, 33, 70]), min_size=1, max_size=4),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    head_dim=st.sampled_from([16, 64, 80]),
    causal=st.booleans(),
)
@settings(max_examples=examples(20))
def test_it_matches_the_reference(
    lengths: list[int], heads: tuple[int, int], head_dim: int, causal: bool, device: str
) -> None:
    case = half_case(lengths, *heads, head_dim, causal, device)
    with override_tiles(**TILES):
        output = case.run()
    assert_as_exact(output, case.to(torch.float64).reference(), case.reference())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # from NumPy about NaN, in the interpreter
def test_a_neighbours_nan_never_comes_near(device: str) -> None:
    case = half_case([20, 40, 20], 2, 1, 64, False, device)
    with override_tiles(**TILES):
        clean = case.run()
        for x in (case.q, case.k, case.v):
            x[20:60] = torch.nan
        poisoned = case.run()
    others = torch.tensor([*range(20), *range(60, 80)], device=device)
    assert poisoned[20:60].isnan().all()
    assert torch.equal(poisoned[others], clean[others])


def test_what_it_hands_to_the_backward_pass_is_right(device: str) -> None:
    case = half_case([33, 70], 4, 2, 64, False, device)
    inputs = [x.requires_grad_() for x in (case.q, case.k, case.v)]
    weights = torch.randn(case.q.shape, generator=torch.Generator().manual_seed(1)).half().to(device)
    expected = torch.autograd.grad(case.run(), inputs, weights)
    with override_tiles(**TILES):
        found = torch.autograd.grad(case.run(), inputs, weights)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


def test_tensors_that_the_copy_engine_cannot_address_take_pointers(device: str) -> None:
    plan = AttentionPlan.build([40, 3], device)
    wide = torch.randn(43, 4, 68, device=device).half()
    q, k, v = wide[..., 2:66], wide[:, :1, 4:68], wide[:, 1:2, :64]  # an offset of 2 · 2 bytes is no multiple of 16
    assert not fits_descriptors(q, k, v)
    assert fits_descriptors(*(x.contiguous() for x in (q, k, v)))
    expected = attention_reference(q, k, v, plan, scale=0.125)
    with override_tiles(**POINTERS_TOO):
        output = attention(q, k, v, plan, scale=0.125)
    torch.testing.assert_close(output, expected, rtol=2e-3, atol=2e-3)
