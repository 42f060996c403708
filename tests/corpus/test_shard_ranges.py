from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import ChunkLimits
from fastvec.corpus.shard_ranges import FEWEST_ROWS, LARGEST_GROUP, default_shard_rows, shard_ranges
from tests.helpers.corpora import texts, write_parquet


def groups_of(sizes: list[int]) -> list[tuple[int, int]]:
    ends = [sum(sizes[: count + 1]) for count in range(len(sizes))]
    return list(zip([0, *ends], ends, strict=False))


@given(st.lists(st.integers(1, 300), max_size=30), st.integers(1, 100))
def test_shards_cover_every_row_once_and_cut_few_row_groups(sizes: list[int], shard_rows: int) -> None:
    groups = groups_of(sizes)
    shards = shard_ranges(groups, shard_rows)

    assert [row for shard in shards for row in shard] == list(range(sum(sizes)))
    assert all(len(shard) > 0 for shard in shards) or shards == [range(0)]
    divided = {(begin, end) for begin, end in groups if end - begin > LARGEST_GROUP * shard_rows}
    begins = {shard.start for shard in shards}
    for begin, end in set(groups) - divided:
        assert not begins & set(range(begin + 1, end))
    assert max(map(len, shards)) <= LARGEST_GROUP * shard_rows or not sizes


def test_groups_are_joined_up_to_the_size_and_large_ones_are_divided_evenly() -> None:
    assert shard_ranges(groups_of([4, 4, 4, 4]), 8) == [range(8), range(8, 16)]
    assert shard_ranges(groups_of([5, 5, 5]), 8) == [range(5), range(5, 10), range(10, 15)]
    assert shard_ranges(groups_of([3, 50]), 10) == [range(3), *(range(b, b + 10) for b in range(3, 53, 10))]
    assert shard_ranges([], 8) == [range(0)]
    with pytest.raises(ValueError, match="at least 1 row, got 0"):
        shard_ranges([], 0)


@pytest.mark.parametrize(
    ("rows", "row_bytes", "expected"),
    [
        (1000, 1544, FEWEST_ROWS),
        (10_000_000, 1544, 156_250),  # a 64th
        (1_000_000_000, 4104, 65_408),  # 256 MiB of 1,024 dimensions
    ],
)
def test_the_default_size(rows: int, row_bytes: int, expected: int) -> None:
    assert default_shard_rows(rows, row_bytes) == expected


def test_chunks_end_where_shards_end(tmp_path: Path) -> None:
    """Those of a shard read alone are those of the whole corpus."""
    files = [
        write_parquet(tmp_path / f"{name}.parquet", texts([f"{name}{row}" for row in range(100)]), group_rows=30)
        for name in "ab"
    ]
    corpus = open_corpus(files)
    limits = ChunkLimits(rows=25, bytes=1 << 20, shard_rows=60)
    shards = corpus.shards(60)
    whole = [(chunk.first_row, chunk.texts.to_pylist()) for chunk in corpus.chunks(limits)]

    alone = [
        (chunk.first_row, chunk.texts.to_pylist())
        for shard in shards
        for chunk in corpus.chunks(limits, first_row=shard.start, end_row=shard.stop)
    ]
    assert alone == whole
    assert shards == [range(60), range(60, 100), range(100, 160), range(160, 200)]
    begins = [first_row for first_row, _ in whole]
    assert {shard.start for shard in shards} <= set(begins)
    assert max(end - begin for begin, end in pairwise(begins)) == 25
