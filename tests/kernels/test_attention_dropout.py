import pytest
import torch

from fastvec_kernels import AttentionPlan, attention
from fastvec_kernels.attention.torch_ops import dropout_keeps
from tests import THOROUGH

pytestmark = pytest.mark.usefixtures("attention_tiles")

HEADS, P = 2, 0.25


def output_and_values(
    lengths: list[int], ids: list[int], seed: int, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return o [T, H, size], v [T, 1, size] and the unit vectors [T, size] that are the values; all scores are equal.

    So o [i, h, j] = 1 / (L (1 − p)) if head h of query i keeps key j, else 0.
    """
    plan = AttentionPlan.build(lengths, device, sequence_ids=ids)
    unit = torch.cat([torch.eye(max(lengths))[:length] for length in lengths]).to(device)
    q, v = torch.zeros(plan.tokens, HEADS, 16, device=device), unit[:, None].clone().requires_grad_()
    return attention(q, q[:, :1].clone(), v, plan, scale=1.0, dropout_p=P, seed=seed), v, unit


def masks(shares: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    """Return which keys are kept in each sequence, [heads, L, L] bool, given `shares` [T, heads, keys]."""
    return [x.transpose(0, 1)[:, :, : len(x)].cpu() > 0 for x in torch.split(shares.detach(), lengths)]


@pytest.mark.sampled
def test_both_directions_drop_what_the_definition_says(device: str) -> None:
    lengths, ids, seed = [40, 7, 70], [12, 3, 2**31 - 1], 2**63 - 1
    if not THOROUGH:
        lengths, ids = lengths[:2], ids[1:]
    o, v, unit = output_and_values(lengths, ids, seed, device)
    forward = masks(o, lengths)
    for head in range(HEADS):
        do = torch.zeros_like(o)
        do[:, head] = unit  # so that dv [j, i] shows whether query i keeps key j
        (dv,) = torch.autograd.grad(o, v, do, retain_graph=True)
        for index, (mask, length) in enumerate(zip(masks(dv, lengths), lengths, strict=True)):
            expected = dropout_keeps(seed, torch.tensor(ids[index : index + 1]), HEADS, length, P)[0, head]
            assert torch.equal(forward[index][head], expected)
            assert torch.equal(mask[0].T, expected)


def test_a_sequence_drops_the_same_in_any_batch_and_a_copy_drops_others(device: str) -> None:
    together = masks(output_and_values([33, 9, 33], [4, 5, 6], 1, device)[0], [33, 9, 33])
    alone = masks(output_and_values([33], [6], 1, device)[0], [33])
    assert torch.equal(alone[0], together[2])
    assert not torch.equal(together[0], together[2])
