"""The warp-specialized kernel for Hopper, on the shipped tiles and a small one: in the interpreter its results alone.

Whether a warp waits for a copy that another started shows only on a GPU.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvec_kernels import AttentionPlan, attention, attention_reference
from fastvec_kernels._accuracy import compare
from fastvec_kernels._launch import INTERPRETED
from fastvec_kernels.attention.configs import TABLES, override_tiles
from fastvec_kernels.attention.parts import Tile
from fastvec_kernels.attention.specialized import fits_descriptors
from tests.kernels import examples
from tests.kernels.attention_cases import Case, assert_as_exact

pytestmark = pytest.mark.usefixtures("only_kernels")

# 32 × 16 and, under Triton 3.9, 64 × 16 compile without a specialized warp
SMALL = Tile(64, 32, 4, 2, path="specialized")
TILES = [
    *(
        pytest.param(head_dim, tile, id=f"d{head_dim} {tile.rows}x{tile.keys}")
        for head_dim in (64, 128)
        for tile in TABLES["sm_90"]["forward_long"][head_dim]
        if tile.path == "specialized"
    ),
    pytest.param(64, SMALL, id="d64 small"),
]
# the interpreter's bfloat16 is wrong, and its time grows with the tiles
HALF, LENGTHS = (torch.float16, [129, 300, 1]) if INTERPRETED else (torch.bfloat16, [129, 1000, 1, 256])


def only(*tiles: Tile) -> dict[str, tuple[Tile, ...]]:
    """Return the cells with which sequences of any length take `tiles`."""
    return {"forward_long": tiles, "forward_32": (), "forward_64": (), "forward_128": ()}


def half_case(lengths: list[int], heads: tuple[int, int], head_dim: int, device: str, *, causal: bool = False) -> Case:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), n, head_dim, generator=generator).to(device, HALF) for n in (*heads, heads[1]))
    options = {"scale": head_dim**-0.5, "causal": causal}
    return Case(q=q, k=k, v=v, plan=AttentionPlan.build(lengths, device), options=options)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("head_dim", "tile"), TILES)
def test_it_matches_the_reference_over_many_tiles(head_dim: int, tile: Tile, causal: bool, device: str) -> None:
    case = half_case(LENGTHS, (2, 1), head_dim, device, causal=causal)
    with override_tiles(**only(tile)):
        output = case.run()
    assert_as_exact(output, case.to(torch.float64).reference(), case.reference())


@pytest.mark.parametrize(("head_dim", "tile"), TILES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # from NumPy about NaN, in the interpreter
def test_a_neighbours_nan_never_comes_near(head_dim: int, tile: Tile, device: str) -> None:
    case = half_case([140, 280, 140], (2, 1), head_dim, device)
    with override_tiles(**only(tile)):
        clean = case.run()
        for x in (case.q, case.k, case.v):
            x[140:420] = torch.nan
        poisoned = case.run()
    others = torch.tensor([*range(140), *range(420, 560)], device=device)
    assert poisoned[140:420].isnan().all()
    assert torch.equal(poisoned[others], clean[others])


@pytest.mark.parametrize(("head_dim", "tile"), TILES)
def test_what_it_hands_to_the_backward_pass_is_right(head_dim: int, tile: Tile, device: str) -> None:
    case = half_case([290], (2, 1), head_dim, device)
    inputs = [x.requires_grad_() for x in (case.q, case.k, case.v)]
    weights = torch.randn(case.q.shape, generator=torch.Generator().manual_seed(1)).to(device, HALF)
    with override_tiles(**only(tile)):
        found = torch.autograd.grad(case.run(), inputs, weights)
    expected = torch.autograd.grad(case.reference(), inputs, weights)
    _, failure = compare(found, expected, "backward")
    assert failure is None


def test_tensors_that_the_copy_engine_cannot_address_take_pointers(device: str) -> None:
    plan = AttentionPlan.build([40, 3], device)
    wide = torch.randn(43, 4, 68, device=device).half()
    q, k, v = wide[..., 2:66], wide[:, :1, 4:68], wide[:, 1:2, :64]  # an offset of 2 · 2 bytes is no multiple of 16
    assert not fits_descriptors(q, k, v)
    assert fits_descriptors(*(x.contiguous() for x in (q, k, v)))
    expected = attention_reference(q, k, v, plan, scale=0.125)
    with override_tiles(**only(SMALL, Tile(32, 16, 4, 1))):
        output = attention(q, k, v, plan, scale=0.125)
    torch.testing.assert_close(output, expected, rtol=2e-3, atol=2e-3)


@given(
    lengths=st.lists(st.sampled_from([1, 7, 31, 32, 33, 63, 64, 65, 97, 130]), min_size=1, max_size=4),
    head_dim=st.sampled_from([16, 80]),
    causal=st.booleans(),
)
@settings(max_examples=examples(20))
def test_it_matches_the_reference_on_any_lengths(lengths: list[int], head_dim: int, causal: bool, device: str) -> None:
    case = half_case(lengths, (3, 1), head_dim, device, causal=causal)
    with override_tiles(**only(SMALL)):
        output = case.run()
    assert_as_exact(output, case.to(torch.float64).reference(), case.reference())
