"""The random masks of attention's dropout; the kernel tests check that every implementation uses them."""

import pytest
import torch

from fastvec_kernels._random import philox
from fastvec_kernels.attention.torch_ops import dropout_keeps

HEADS, P = 4, 0.25


@pytest.mark.parametrize(
    ("counter", "seed", "words"),
    [  # the known answers published with Random123
        ([0, 0, 0, 0], 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, 2**64 - 1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_random_words_are_philoxs(counter: list[int], seed: int, words: list[int]) -> None:
    assert [int(word) for word in philox([torch.tensor(c) for c in counter], seed)] == words


def agreement(a: torch.Tensor, b: torch.Tensor) -> float:
    """How many standard deviations the share of equal entries differs from that of independent masks."""
    expected, n = P * P + (1 - P) * (1 - P), a.numel()
    return float(abs((a == b).double().mean().item() - expected) / (expected * (1 - expected) / n) ** 0.5)


def test_the_masks_are_of_independent_coins() -> None:
    masks = dropout_keeps(3, torch.arange(40), HEADS, 128, P)
    n = masks.numel()
    assert abs(masks.double().mean().item() - (1 - P)) < 4 * (P * (1 - P) / n) ** 0.5
    above = torch.ones(128, 128).triu(1).bool()
    pairs = {
        "keys": (masks[..., 1:], masks[..., :-1]),
        "queries": (masks[:, :, 1:], masks[:, :, :-1]),
        "heads": (masks[:, 1:], masks[:, :-1]),
        "sequences": (masks[1:], masks[:-1]),
        "seeds": (masks, dropout_keeps(4, torch.arange(40), HEADS, 128, P)),
        "high halves of seeds": (masks, dropout_keeps(3 + 2**32, torch.arange(40), HEADS, 128, P)),
        "a query and a key that change places": (masks[..., above], masks.mT[..., above]),
    }
    for name, (a, b) in pairs.items():
        assert agreement(a, b) < 4, name
    rows = (~masks).double().sum(-1)  # binomial: the variance shows whether the entries of a row are correlated
    assert abs(rows.var().item() / (128 * P * (1 - P)) - 1) < 0.05


@pytest.mark.parametrize("p", [2**-24, 0.1, 1 - 2**-24])
def test_a_probability_is_kept_to_24_bits(p: float) -> None:
    masks = dropout_keeps(0, torch.arange(100), 8, 64, p)
    n = masks.numel()
    assert abs((~masks).double().sum().item() - n * p) <= 4 * (n * p * (1 - p)) ** 0.5 + 1
