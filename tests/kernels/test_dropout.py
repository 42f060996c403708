import math

import pytest
import torch

from fastvec_kernels import dropout, dropout_reference

TOKENS = torch.tensor([[4, 0], [4, 1], [9, 0], [2**31 - 1, 7], [4, 2**20]])


def test_dropout_is_the_definition_and_passes_gradients_where_it_keeps(device: str) -> None:
    x = torch.randn(5, 101, device=device, requires_grad=True)  # odd: the last random word serves only one feature
    y = dropout(x, TOKENS.to(device), p=0.3, seed=2**63 - 1)
    expected = dropout_reference(x, TOKENS.to(device), p=0.3, seed=2**63 - 1)
    torch.testing.assert_close(y, expected)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, (expected != 0) / 0.7)


def test_a_token_drops_the_same_in_any_batch_and_another_token_others(device: str) -> None:
    ones = torch.ones(5, 64, device=device)
    together = dropout(ones, TOKENS.to(device), p=0.5, seed=1)
    alone = dropout(ones[:1], TOKENS[2:3].to(device), p=0.5, seed=1)
    assert torch.equal(alone[0], together[2])
    assert len({tuple(row.tolist()) for row in together}) == 5
    assert not torch.equal(together, dropout(ones, TOKENS.to(device), p=0.5, seed=2))


@pytest.mark.parametrize("p", [pytest.param(0.05, marks=pytest.mark.slow), 0.5])
def test_the_share_dropped_is_p(device: str, p: float) -> None:
    tokens = torch.stack([torch.arange(400) // 20, torch.arange(400) % 20], dim=1).to(device)
    dropped = (dropout(torch.ones(400, 500, device=device), tokens, p=p, seed=0) == 0).float().mean().item()
    assert dropped == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 200_000))


def test_a_dtype_stays(device: str) -> None:
    x = torch.ones(5, 8, dtype=torch.bfloat16, device=device)
    assert dropout(x, TOKENS.to(device), p=0.1, seed=0).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": TOKENS[:3]}, "tokens \\[T, 2\\]"),
        ({"p": 1.0}, "of at least 0 and below 1, got 1.0"),
        ({"seed": -1}, "seed from 0"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"tokens": TOKENS, "p": 0.1, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        dropout(torch.ones(5, 8), **arguments)  # type: ignore[arg-type]
