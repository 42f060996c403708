"""Outputs with given vectors, and what is to be found in them, computed pair by pair."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.output.vector_column import FloatArray, VectorDtype, from_values, to_column
from fastvec.output.writer import Writer
from tests.helpers.outputs import make_job, make_schema

Wide = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def normalized(vectors: npt.ArrayLike) -> FloatArray:
    wide = np.asarray(vectors, dtype=np.float64)
    lengths: Wide = np.linalg.norm(wide, axis=1, keepdims=True)
    return (wide / lengths).astype(np.float32)


def clustered(seed: int, rows: int, dims: int = 16, noise: float = 0.5) -> FloatArray:
    """Unit vectors, of which two in five are near an earlier one, which may be near another: clusters and chains."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((rows, dims))
    for row in range(1, rows):
        if random.random() < 0.4:
            earlier = vectors[random.integers(row)]
            vectors[row] = earlier + noise * np.linalg.norm(earlier) * random.standard_normal(dims) / dims**0.5
    return normalized(vectors)


def save(
    path: Path,
    vectors: FloatArray,
    *,
    missing: Sequence[int] = (),
    dtype: VectorDtype = "float32",
    batch: int = 6,
    names: pa.Array | None = None,
    kept: str = "id",
    model: str = "tiny",
) -> Path:
    """Write an output of these vectors in record batches of `batch` rows, without those of the rows `missing`."""
    rows, dims = vectors.shape
    schema = make_schema(dtype=dtype, dims=dims)
    names = pa.array([f"doc {row}" for row in range(rows)]) if names is None else names
    schema = schema.set(0, pa.field(kept, names.type))
    ranges = np.array(json.loads(schema.metadata[b"fastvec.ranges"]), np.float32) if dtype == "int8" else None
    valid = ~np.isin(np.arange(rows), missing)
    writer = Writer.open(path, make_job(model=model))
    writer.begin(schema)
    for begin in range(0, rows, batch):
        own = slice(begin, begin + batch)
        numbers = pa.array(np.arange(rows)[own])
        column = to_column(vectors[own], valid[own], dtype, ranges).cast(schema.field("embedding").type)
        some = pa.RecordBatch.from_arrays([names[own], numbers, column], schema=schema)
        writer.write(some, counts={"nulls": int((~valid[own]).sum())}, errors=[], batch_tokens=1)
    writer.finish([])
    return path


def stored(vectors: FloatArray, dtype: VectorDtype) -> Wide:
    """The vectors as an output of this dtype has them, at length 1."""
    ranges = np.array([0.5 + i / 8 for i in range(vectors.shape[1])], np.float32) if dtype == "int8" else None
    column = to_column(vectors, np.ones(len(vectors), dtype=np.bool_), dtype, ranges)
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), -1)
    wide = from_values(values, dtype, ranges).astype(np.float64)
    lengths: Wide = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / lengths


def similarities(vectors: Wide, missing: Sequence[int] = ()) -> Wide:
    """The cosine similarities [n, n], -inf of rows without a vector."""
    found = vectors @ vectors.T
    found[list(missing)] = found[:, list(missing)] = -np.inf
    return found


def clear_threshold(found: Wide, near: float) -> float:
    """A threshold close to `near` that no similarity is within 1e-4 of, so that rounding does not decide."""
    while np.abs(found - near).min() < 1e-4:
        near += 1e-4
    return near


def groups(found: Wide, threshold: float) -> list[int]:
    """The first row that each row is joined with by pairs of at least the threshold."""
    first = list(range(len(found)))
    for row in range(len(found)):
        reached, waiting = {row}, [row]
        while waiting:
            for other in np.flatnonzero(found[waiting.pop()] >= threshold).tolist():
                if other not in reached:
                    reached.add(other)
                    waiting.append(other)
        first[row] = min(reached)
    return first


def pairs_above(found: Wide, threshold: float) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for a, b in zip(*np.nonzero(found >= threshold), strict=True) if a < b}
