"""`fastvec.neighbors`: the lines are those of a comparison pair by pair, whatever the blocks."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastvec import neighbors
from fastvec.output.vector_column import FloatArray, VectorDtype
from fastvec.pairs.products import Products
from tests.pairs.cases import Wide, clear_threshold, clustered, save, similarities, stored

MISSING = [3, 16, 17, 18, 49]


def exact(rows: int) -> FloatArray:
    """Vectors with four of 16 dimensions ±1/2: their products are quarters without rounding, and many are equal."""
    random = np.random.default_rng(0)
    vectors = np.zeros((rows, 16), dtype=np.float32)
    for vector in vectors:
        vector[random.choice(16, 4, replace=False)] = random.choice([-0.5, 0.5], 4)
    return vectors


def expected(found: Wide, k: int, threshold: float = -1) -> list[tuple[int, int, int]]:
    lines = []
    for row, own in enumerate(found):
        others = [
            other for other in np.argsort(-own, kind="stable").tolist() if other != row and own[other] >= threshold
        ]
        lines += [(row, rank, other) for rank, other in enumerate(others[:k], start=1)]
    return lines


def lines_of(path: Path) -> list[tuple[int, int, int]]:
    table = pq.read_table(path)
    assert table.schema.names == ["row", "rank", "neighbor", "similarity"]
    return list(zip(*(table[name].to_pylist() for name in ("row", "rank", "neighbor")), strict=True))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("k", [1, 3, 5, 60])
@pytest.mark.parametrize("threshold", [None, 0.25])
def test_equal_neighbors_are_in_the_order_of_rows(k: int, threshold: float | None, tmp_path: Path) -> None:
    vectors = exact(50)
    vectors[10:14] = vectors[33]  # each is a neighbor of the others
    saved = save(tmp_path / "v.arrow", vectors, missing=MISSING)
    report = neighbors(saved, tmp_path / "n.parquet", k=k, threshold=threshold)
    found = similarities(vectors.astype(np.float64), MISSING)
    lines = expected(found, k, -1 if threshold is None else threshold)
    assert lines_of(tmp_path / "n.parquet") == lines
    shown = pq.read_table(tmp_path / "n.parquet")["similarity"].to_pylist()
    assert shown == [found[row, other] for row, _, other in lines]
    assert (report.rows, report.neighbors, report.no_vector) == (50, len(lines), len(MISSING))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
def test_each_dtype_is_compared_by_its_values(dtype: VectorDtype, tmp_path: Path) -> None:
    vectors = clustered(seed=6, rows=50)
    found = similarities(stored(vectors, dtype), MISSING)
    saved = save(tmp_path / "v.parquet", vectors, missing=MISSING, dtype=dtype)
    neighbors(saved, tmp_path / "n.parquet", k=4)
    table = pq.read_table(tmp_path / "n.parquet")
    wanted = expected(found, 4)
    assert [line[:2] for line in lines_of(tmp_path / "n.parquet")] == [line[:2] for line in wanted]
    # binary vectors of 16 bits have equal similarities, whose order rounding decides: compare these, not the rows
    best = [found[row, other] for row, _, other in wanted]
    chosen = [found[row, other] for row, _, other in lines_of(tmp_path / "n.parquet")]
    assert chosen == pytest.approx(best, abs=3e-6)
    assert table["similarity"].to_pylist() == pytest.approx(chosen, abs=3e-6)


def test_what_comes_nearer_and_nearer_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block is better than those before, so that candidates are sorted again and again."""
    monkeypatch.setattr(Products, "columns", 4)
    monkeypatch.setattr(Products, "rows", 10)
    angles = np.linspace(0, 1.5, 64)[::-1]
    vectors = np.stack([np.cos(angles), np.sin(angles), *[np.zeros(64)] * 6], axis=1).astype(np.float32)
    saved = save(tmp_path / "v.arrow", vectors)
    neighbors(saved, tmp_path / "n.parquet", k=2)
    lines = [line for line in lines_of(tmp_path / "n.parquet") if line[0] == 0]
    assert lines == [(0, 1, 1), (0, 2, 2)]
    lines = [line for line in lines_of(tmp_path / "n.parquet") if line[0] == 63]
    assert lines == [(63, 1, 62), (63, 2, 61)]


def test_neighbors_are_named_by_their_outputs(tmp_path: Path) -> None:
    vectors = clustered(seed=7, rows=20)
    files = [save(tmp_path / name, vectors[10 * i : 10 * i + 10]) for i, name in enumerate(("a.arrow", "b.arrow"))]
    found = similarities(vectors.astype(np.float64))
    threshold = clear_threshold(found, 0.5)
    neighbors(files, tmp_path / "n.arrow", k=3, threshold=threshold)
    table = pa.ipc.open_file(tmp_path / "n.arrow").read_all()
    assert table.schema.names == ["file", "row", "rank", "neighbor_file", "neighbor", "similarity"]
    wanted = expected(found, 3, threshold)
    names = [str(file) for file in files]
    assert table.drop_columns("similarity").to_pylist() == [
        {
            "file": names[row // 10],
            "row": row % 10,
            "rank": rank,
            "neighbor_file": names[other // 10],
            "neighbor": other % 10,
        }
        for row, rank, other in wanted
    ]


def test_no_rows_and_one_row_have_no_neighbors(tmp_path: Path) -> None:
    vectors = clustered(seed=8, rows=1)
    for rows in (0, 1):
        report = neighbors(save(tmp_path / f"{rows}.arrow", vectors[:rows]), tmp_path / f"{rows}.parquet")
        assert (report.rows, report.neighbors) == (rows, 0)
        assert lines_of(tmp_path / f"{rows}.parquet") == []
