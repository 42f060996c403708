"""`fastvec.dedup`: the groups are those of a comparison pair by pair, whatever the blocks."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastvec import Encoder, dedup, embed
from fastvec.errors import OutputError
from fastvec.output.vector_column import VectorDtype
from fastvec.pairs import dedup as module
from fastvec.pairs.dedup import DedupReport
from fastvec.pairs.products import Products
from fastvec.pairs.progress import PairProgress
from fastvec.system.durable_files import draft_path
from tests.pairs.cases import (
    clear_threshold,
    clustered,
    groups,
    normalized,
    pairs_above,
    save,
    similarities,
    stored,
)

MISSING = [0, 5, 30, 31, 59]


def column(table: pa.Table, name: str) -> list[Any]:
    values: list[Any] = table[name].to_pylist()
    return values


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_groups_and_pairs_are_those_of_brute_force(dtype: VectorDtype, suffix: str, tmp_path: Path) -> None:
    vectors = clustered(seed=1, rows=60)
    vectors[40] = vectors[20]
    found = similarities(stored(vectors, dtype), MISSING)
    threshold = clear_threshold(found, 0.7 if dtype == "binary" else 0.85)
    expected, pairs = groups(found, threshold), pairs_above(found, threshold)
    chains = [
        (row, group) for row, group in enumerate(expected) if row not in MISSING and found[row, group] < threshold
    ]
    assert chains  # else single linkage is not tested
    saved = save(tmp_path / f"v{suffix}", vectors, missing=MISSING, dtype=dtype)

    report = dedup(saved, tmp_path / "g.parquet", threshold=threshold, pairs=tmp_path / "p.parquet")

    table, listed = pq.read_table(tmp_path / "g.parquet"), pq.read_table(tmp_path / "p.parquet")
    assert table.schema.names == ["id", "row", "group", "keep"]
    assert column(table, "id") == [f"doc {row}" for row in range(60)]
    assert column(table, "row") == list(range(60))
    assert column(table, "group") == [None if row in MISSING else group for row, group in enumerate(expected)]
    assert column(table, "keep") == [row == group for row, group in enumerate(expected)]
    both = list(zip(column(listed, "row_a"), column(listed, "row_b"), strict=True))
    assert (len(both), set(both)) == (len(pairs), pairs)
    # the error of a product of 16 numbers in float32 is at most 16 · 2⁻²⁴ = 1e-6, and as large for each length
    assert column(listed, "similarity") == pytest.approx([found[pair] for pair in both], abs=3e-6)
    sizes = np.bincount(expected)
    assert isinstance(report, DedupReport)
    assert (report.rows, report.kept, report.removed) == (60, len(set(expected)), 60 - len(set(expected)))
    assert (report.groups, report.largest) == ((sizes > 1).sum(), sizes.max())
    assert (report.pairs, report.no_vector) == (len(pairs), len(MISSING))
    without_pairs = dedup(saved, tmp_path / "g.parquet", threshold=threshold, overwrite=True)
    assert pq.read_table(tmp_path / "g.parquet").equals(table)
    assert isinstance(without_pairs, DedupReport)
    assert without_pairs.pairs == len(pairs)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edges=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=12),
    missing=st.sets(st.integers(0, 19), max_size=4),
    batch=st.integers(1, 20),
    blocks=st.tuples(st.integers(1, 21), st.integers(1, 21)),
    at_once=st.integers(1, 60),
)
def test_any_graph_is_split_into_its_components(
    edges: list[tuple[int, int]],
    missing: set[int],
    batch: int,
    blocks: tuple[int, int],
    at_once: int,
    tmp_path: Path,
) -> None:
    """A dimension for each edge: rows have a product of 1 for each edge that they share."""
    vectors = np.eye(20, 20 + len(edges) + 4)[:, : (20 + len(edges) + 3) // 8 * 8 + 8]
    for number, (a, b) in enumerate(edges):
        vectors[[a, b], 20 + number] = 1
    unit = normalized(vectors)
    found = similarities(unit.astype(np.float64), sorted(missing))
    threshold = 1 / 25  # two rows of at most 13 ones share one: 1/13; none: 0
    (tmp_path / "v.arrow").unlink(missing_ok=True)
    saved = save(tmp_path / "v.arrow", unit, missing=sorted(missing), batch=batch)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Products, "rows", blocks[0])
        patched.setattr(Products, "columns", blocks[1])
        patched.setattr(module, "PAIRS_AT_ONCE", at_once)
        dedup(saved, tmp_path / "g.parquet", threshold=threshold, overwrite=True)
    expected = [None if row in missing else group for row, group in enumerate(groups(found, threshold))]
    assert column(pq.read_table(tmp_path / "g.parquet"), "group") == expected


@pytest.mark.usefixtures("small_blocks")
def test_groups_reach_over_several_outputs(tmp_path: Path) -> None:
    vectors = clustered(seed=2, rows=50)
    found = similarities(vectors.astype(np.float64))
    threshold = clear_threshold(found, 0.95)
    first = save(tmp_path / "a.arrow", vectors[:20], names=pa.array(range(20), pa.int32()), kept="file")
    other = save(tmp_path / "b.parquet", vectors[20:], names=pa.array(range(30), pa.int64()), kept="file")

    dedup([first, other], tmp_path / "g.arrow", threshold=threshold, pairs=tmp_path / "p.jsonl")

    table = pa.ipc.open_file(tmp_path / "g.arrow").read_all()
    assert table.schema.names == ["kept_file", "file", "row", "group", "keep"]
    assert column(table, "kept_file") == column(table, "row") == [*range(20), *range(30)]
    assert column(table, "file") == [str(first)] * 20 + [str(other)] * 30
    assert column(table, "group") == groups(found, threshold)
    listed = pa.json.read_json(tmp_path / "p.jsonl")
    assert listed.schema.names == ["file_a", "row_a", "file_b", "row_b", "similarity"]
    begins = {str(first): 0, str(other): 20}
    positions = {
        (begins[line["file_a"]] + line["row_a"], begins[line["file_b"]] + line["row_b"]) for line in listed.to_pylist()
    }
    assert positions == pairs_above(found, threshold)


@pytest.mark.parametrize("names", [None, pa.array([0.5, None, 2, 3])])
def test_a_kept_column_of_types_that_do_not_agree_is_left_out(
    tmp_path: Path, names: pa.Array | None, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = clustered(seed=2, rows=4)
    first = save(tmp_path / "a.arrow", vectors, names=pa.array([2**60 + 1, 1, 2, 3]))
    other = save(tmp_path / "b.arrow", vectors, **({} if names is None else {"names": names}))
    dedup([first, other], tmp_path / "g.parquet", threshold=0.9)
    assert pq.read_schema(tmp_path / "g.parquet").names == ["file", "row", "group", "keep"]
    type_ = "string" if names is None else "double"
    assert caplog.messages == [f"the kept column id is left out: it is int64 and {type_}"]


def test_a_time_beyond_the_unit_of_another_output_is_one_line(tmp_path: Path) -> None:
    vectors = clustered(seed=2, rows=4)
    first = save(tmp_path / "a.arrow", vectors, names=pa.array([10**13, 0, 1, 2], pa.timestamp("s")))
    other = save(tmp_path / "b.arrow", vectors, names=pa.array([0] * 4, pa.timestamp("ns")))
    with pytest.raises(OutputError, match="kept columns have values of no common type"):
        dedup([first, other], tmp_path / "g.parquet", threshold=0.9)
    assert not (tmp_path / "g.parquet").exists()


def test_a_kept_column_that_parquet_cannot_store_is_one_line(tmp_path: Path) -> None:
    saved = save(tmp_path / "v.arrow", clustered(seed=2, rows=4), names=pa.array([{}] * 4, pa.struct([])))
    with pytest.raises(OutputError, match=r"column id is struct<>, which Parquet cannot store"):
        dedup(saved, tmp_path / "g.parquet", threshold=0.9)
    dedup(saved, tmp_path / "g.arrow", threshold=0.9)
    assert {path.name for path in tmp_path.iterdir()} == {"v.arrow", "g.arrow"}


def test_shards_and_passages_are_named_by_their_row(tmp_path: Path, tiny_llama: Path, encoder: Encoder) -> None:
    texts = pa.table({"text": ["one", "two", None, "one", "three", "two"]})
    embed(texts, f"{tmp_path}/shards/", encoder=encoder, shard_rows=2)
    dedup(tmp_path / "shards", tmp_path / "g.parquet", threshold=0.99999, pairs=tmp_path / "p.parquet")
    table = pq.read_table(tmp_path / "g.parquet")
    assert table.to_pydict() == {
        "row": [0, 1, 2, 3, 4, 5],
        "group": [0, 1, None, 0, 4, 1],
        "keep": [True, True, True, False, True, False],
    }
    assert pq.read_table(tmp_path / "p.parquet", columns=["row_a", "row_b"]).to_pydict() == {
        "row_a": [0, 1],
        "row_b": [3, 5],
    }

    long = Encoder.from_pretrained(tiny_llama, dtype="float32", device="cpu", max_length=8)
    embed(pa.table({"text": ["a b c d e f g h i j k", "q"]}), tmp_path / "c.arrow", encoder=long, long="chunks")
    dedup(tmp_path / "c.arrow", tmp_path / "c.parquet", threshold=0.1, pairs=tmp_path / "cp.parquet")
    table = pq.read_table(tmp_path / "c.parquet")
    assert table.schema.names == ["row", "chunk", "char_start", "char_end", "group", "keep"]
    assert table.num_rows > 2
    assert column(table, "row")[:2] == [0, 0]
    assert pq.read_schema(tmp_path / "cp.parquet").names == ["row_a", "chunk_a", "row_b", "chunk_b", "similarity"]


def test_thousands_of_equal_rows_are_one_group_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 20_000
    saved = save(tmp_path / "v.arrow", np.repeat(normalized([range(1, 9)]), rows, axis=0), batch=4096)
    listed: list[int] = []
    pairs = Products.pairs

    def counted(self: Products, scores: Any, mask: Any) -> Any:
        found = pairs(self, scores, mask)
        listed.append(len(found[0]))
        return found

    monkeypatch.setattr(Products, "pairs", counted)
    report = dedup(saved, tmp_path / "g.parquet", threshold=1)
    assert isinstance(report, DedupReport)
    assert (report.pairs, report.groups, report.largest) == (rows * (rows - 1) // 2, 1, rows)
    assert max(listed) <= module.PAIRS_AT_ONCE
    # a block of 512 columns is joined with its first rows, 512 at once, and never again but in the next left block
    assert sum(listed) < rows * 512 * 2


def test_equal_vectors_have_a_similarity_of_1_at_any_length(tmp_path: Path) -> None:
    for dims in (8, 384, 4096):
        random = np.random.default_rng(dims)
        vectors = normalized(random.standard_normal((40, dims)))
        vectors[20:] = vectors[:20]
        vectors[0] = normalized(vectors[:1] + 0.02 * dims**-0.5 * random.standard_normal((1, dims)))[0]
        assert 0.999 < vectors[0] @ vectors[20] < 0.9999
        saved = save(tmp_path / f"{dims}.arrow", vectors, batch=40)
        dedup(saved, tmp_path / "g.parquet", threshold=1, pairs=tmp_path / "p.parquet", overwrite=True)
        assert column(pq.read_table(tmp_path / "g.parquet"), "group") == [*range(21), *range(1, 20)]
        found = column(pq.read_table(tmp_path / "p.parquet"), "similarity")
        # 40 products that each are off by more than 4 √D 2⁻²⁴ with a probability of 7e-4
        assert min(found) >= 1 - 4 * dims**0.5 * 2**-24
        assert max(found) <= 1


@pytest.mark.usefixtures("small_blocks")
def test_rows_near_another_set_are_not_kept(tmp_path: Path) -> None:
    vectors = clustered(seed=3, rows=90)
    found = similarities(vectors.astype(np.float64))[:60, 60:]
    found[MISSING] = -np.inf
    found[:, 7] = -np.inf  # without a vector
    threshold = clear_threshold(found, 0.8)
    saved = save(tmp_path / "train.arrow", vectors[:60], missing=MISSING)
    test = save(tmp_path / "test.arrow", vectors[60:], missing=[7])

    report = dedup(saved, tmp_path / "g.parquet", threshold=threshold, against=test)

    table = pq.read_table(tmp_path / "g.parquet")
    assert table.schema.names == ["id", "row", "nearest", "similarity", "keep"]
    nearest, best = found.argmax(axis=1), found.max(axis=1)
    assert column(table, "nearest") == [None if row in MISSING else int(nearest[row]) for row in range(60)]
    shown = [value for value in column(table, "similarity") if value is not None]
    assert shown == pytest.approx(np.delete(best, MISSING), abs=3e-6)
    assert column(table, "keep") == (best < threshold).tolist()
    near = int((best >= threshold).sum())
    assert near > 5
    assert (report.removed, report.kept, report.no_vector) == (near, 60 - near, len(MISSING))
    parts = [save(tmp_path / f"{i}.arrow", vectors[60 + 15 * i : 75 + 15 * i], missing=[7] * (i == 0)) for i in (0, 1)]
    dedup(saved, tmp_path / "several.parquet", threshold=threshold, against=parts)
    several = pq.read_table(tmp_path / "several.parquet")
    assert several.schema.names == ["id", "row", "nearest_file", "nearest", "similarity", "keep"]
    assert column(several, "keep") == column(table, "keep")
    own = [None if row in MISSING else str(parts[nearest[row] // 15]) for row in range(60)]
    assert column(several, "nearest_file") == own


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_no_rows_and_one_row(tmp_path: Path, suffix: str) -> None:
    vectors = clustered(seed=4, rows=2)
    none, one = (save(tmp_path / f"{rows}{suffix}", vectors[:rows]) for rows in (0, 1))
    alone = save(tmp_path / f"null{suffix}", vectors, missing=[0, 1])
    for saved, rows in ((none, 0), (one, 1), (alone, 2)):
        for other in ((), none, one):
            if saved != other:
                report = dedup(saved, tmp_path / "g.parquet", threshold=0.5, against=other, overwrite=True)
                assert (report.rows, report.kept) == (rows, rows)
                assert column(pq.read_table(tmp_path / "g.parquet"), "keep") == [True] * rows
    listed = tmp_path / "p.parquet"
    dedup(none, tmp_path / "g.parquet", threshold=0.5, pairs=listed, overwrite=True)
    assert pq.read_table(listed).num_rows == 0


def test_progress_ends_at_all_pairs(tmp_path: Path) -> None:
    shown: list[PairProgress] = []
    saved = save(tmp_path / "v.arrow", clustered(seed=5, rows=30))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Products, "columns", 10)
        dedup(saved, tmp_path / "g.parquet", threshold=0.9, progress=shown.append)
    assert [progress.share for progress in shown] == [(9 * 10, 435), (9 * 10 + 19 * 10, 435), (435, 435)]
    assert not draft_path(tmp_path / "g.parquet").exists()
