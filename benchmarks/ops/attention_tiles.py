"""Computes the useful share of attention's tiles: the required scores among those that a program computes."""

import torch

from fastvec_kernels.attention.configs import configuration
from fastvec_kernels.attention.parts import Kind, Tile
from fastvec_kernels.attention.plan import AttentionPlan, lengths_of, list_programs

LENGTHS = (5, 10, 20, 32, 50, 64, 100, 128, 200, 512, 2048)
GROUPS = (1, 4)  # query heads per key head


def useful_share(length: int, group: int, rows: int, keys: int) -> float:
    """Return required scores / computed scores.

    length · group query rows are cut into tiles of `rows`, and the `length` keys of each into tiles of `keys`.
    """
    done = -(-length * group // rows) * rows * (-(-length // keys) * keys)
    return length * length * group / done


def forward_tile(length: int, group: int, head_dim: int, arch: str) -> Tile:
    """Return the tile for a sequence of this length, chosen as for a batch: by `list_programs` from a plan."""
    kind = Kind(group=group, head_dim=head_dim, value_dim=head_dim)
    passes = configuration(arch, kind, torch.bfloat16)
    tile = passes.forward_long[0]
    lengths = AttentionPlan.build([length]).host_lengths
    work = list_programs(lengths_of(lengths), lengths.device, tile.rows, group, tuple(passes.forward_short))
    served = [tile, *reversed(passes.forward_short.values())]
    return next(tile for tile, count in zip(served, work.counts, strict=True) if count)


def tile_report(head_dim: int = 128, arch: str = "sm_90") -> str:
    lines = [f"Useful share of the forward tiles at head size {head_dim} on {arch}, by length:"]
    for group in GROUPS:
        lines.append(f"  {group} query head{'s' * (group > 1)} per key head")
        for length in LENGTHS:
            tile = forward_tile(length, group, head_dim, arch)
            packed = 1 if tile.path == "specialized" else group  # specialized programs process one query head
            share = useful_share(length, packed, tile.rows, tile.keys)
            waste = f"{1 / share:5.1f} times the required scores"
            lines.append(f"    {length:5} tokens  {tile.rows:3} × {tile.keys:3}  {share:6.1%}  {waste}")
    return "\n".join(lines)
