"""Attention's decisions on the host before a launch: the programs for a batch and their tiles."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastvec_kernels import AttentionPlan
from fastvec_kernels._launch import SHARED_MEMORY
from fastvec_kernels.attention.configs import CLASSES, TABLES, configuration, override_tiles, widest_head
from fastvec_kernels.attention.parts import Kind, Tile
from fastvec_kernels.attention.plan import lengths_of, list_programs

PLAIN = Kind(group=4, head_dim=64, value_dim=64)


def test_a_plan_says_where_sequences_are() -> None:
    plan = AttentionPlan.build([2, 2, 5, 2], sequence_ids=[7, 8, 9, 7])
    assert plan.cu_seqlens.tolist() == [0, 2, 4, 9, 11]
    assert plan.sequence_ids.tolist() == [7, 8, 9, 7]
    assert plan.runs == ((0, 2, 2), (4, 1, 5), (9, 1, 2))
    assert (plan.tokens, plan.host_lengths.tolist()) == (11, [2, 2, 5, 2])
    assert AttentionPlan.build([2, 2]).sequence_ids.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("lengths", "ids", "message"),
    [
        ([], None, r"at least one token, got lengths \[\]"),
        ([3, 0], None, r"at least one token, got lengths \[3, 0\]"),
        ([3, 1], [4], "an id for each of 2 sequences, got 1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(lengths: list[int], ids: list[int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"a plan needs .*{message}"):
        AttentionPlan.build(lengths, sequence_ids=ids)


def test_work_is_listed_longest_first_and_by_class() -> None:
    lengths = torch.tensor([20, 300, 33, 32, 130, 64], dtype=torch.int32)
    work = list_programs(lengths_of(lengths), lengths.device, rows=128, group=2, limits=(32, 64))
    assert work.items.tolist() == [
        *([1, row] for row in (0, 128, 256, 384, 512)),  # 300 tokens of two query heads: 600 rows
        *([4, row] for row in (0, 128, 256)),
        *([5, 0], [2, 0]),  # at most 64 tokens
        *([3, 0], [0, 0]),  # at most 32 tokens
    ]
    assert work.counts == (8, 2, 2)


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=30),
    rows=st.sampled_from([16, 64, 128]),
    group=st.sampled_from([1, 3, 8]),
    limits=st.sampled_from([(), (32,), (32, 64, 128)]),
)
def test_every_row_has_one_program_and_no_program_is_empty(
    lengths: list[int], rows: int, group: int, limits: tuple[int, ...]
) -> None:
    host_lengths = torch.tensor(lengths, dtype=torch.int32)
    work = list_programs(lengths_of(host_lengths), torch.device("cpu"), rows, group, limits)
    assert work is list_programs(
        lengths_of(host_lengths.clone()), torch.device("cpu"), rows, group, limits
    )  # one list for all layers
    items = [(int(sequence), int(first)) for sequence, first in work.items]
    assert len(items) == sum(work.counts)
    longer, *classes = work.counts
    tiled = [(index, row) for index, length in enumerate(lengths) for row in range(0, length * group, rows)]
    longest_class = limits[-1] if limits else 0
    assert sorted(items[:longer]) == [item for item in tiled if lengths[item[0]] > longest_class]
    first = longer
    for (limit, below), count in zip(itertools.pairwise([*reversed(limits), 0]), classes, strict=True):
        own = items[first : first + count]
        assert sorted(own) == [(index, 0) for index, length in enumerate(lengths) if below < length <= limit]
        first += count


@pytest.mark.parametrize("row", TABLES)
@pytest.mark.parametrize("dropout", [False, True])
def test_every_kind_has_tiles_that_hold_what_they_must(row: str, dropout: bool) -> None:
    architecture, _, precision = row.partition(" ")
    dtype = torch.float32 if precision else torch.bfloat16
    assert architecture in SHARED_MEMORY
    for head_dim in (16, 64, 80, 128, 256):
        if head_dim > widest_head(dtype):
            continue
        kind = PLAIN._replace(head_dim=head_dim, value_dim=head_dim, dropout=dropout)
        passes = configuration(architecture, kind, dtype)
        for classes in (passes.forward_short, passes.backward_short):
            assert list(classes) == sorted(set(classes) & set(CLASSES))
            assert all(tile.keys >= limit for limit, tile in classes.items())  # a program has all keys of a sequence
        tiles = [*passes.forward_long, passes.backward_rows, passes.backward_keys]
        assert any(tile.path == "pointer" for tile in passes.forward_long)  # not every tensor fits a descriptor
        assert not any("dropout" in tile.excludes.split() for tile in tiles) or not dropout


def test_a_head_takes_the_narrowest_tiles_that_hold_it() -> None:
    def forward(head_dim: int, value_dim: int) -> Tile:
        kind = PLAIN._replace(head_dim=head_dim, value_dim=value_dim)
        return configuration("sm_90", kind, torch.bfloat16).forward_long[0]

    cells = TABLES["sm_90"]["forward_long"]
    assert forward(80, 80) == forward(128, 16) == forward(16, 96) == cells[128][0]
    assert forward(64, 64) == forward(16, 16) == cells[64][0]


@pytest.mark.parametrize(
    "kind",
    [PLAIN._replace(window=True), PLAIN._replace(softcap=True), PLAIN._replace(sinks=True)],
    ids=["window", "softcap", "sinks"],
)
def test_the_specialized_kernel_takes_no_options(kind: Kind) -> None:
    def paths(kind: Kind) -> set[str]:
        return {tile.path for tile in configuration("sm_90", kind, torch.bfloat16).forward_long}

    assert paths(PLAIN) == paths(PLAIN._replace(causal=True)) == {"pointer", "specialized"}
    assert paths(kind) == {"pointer"}


def test_forced_tiles_are_taken_for_a_while() -> None:
    before = configuration("sm_90", PLAIN, torch.bfloat16)
    tile = Tile(16, 32, 1, 1)
    with override_tiles(backward_rows=(tile,), forward_32=(), forward_long=(tile,)):
        inside = configuration("sm_90", PLAIN, torch.bfloat16)
    assert inside == replace(
        before,
        backward_rows=tile,
        forward_long=(tile,),
        forward_short={limit: short for limit, short in before.forward_short.items() if limit != 32},
    )
    assert configuration("sm_90", PLAIN, torch.bfloat16) == before


def test_an_architecture_without_tiles_is_named() -> None:
    with pytest.raises(ValueError, match=r"attention has tiles for sm_80, .*, not for sm_70 float32"):
        configuration("sm_70", PLAIN, torch.float32)
