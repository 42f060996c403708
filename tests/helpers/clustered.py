"""Outputs of vectors around some centers, from the real writer."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.output.vector_column import VectorDtype, column_type, ranges_of, ranges_to_json, to_column
from fastvec.output.writer import Writer
from tests.helpers.outputs import make_job, make_schema

DIMS = 16
Floats = npt.NDArray[np.float32]


def clustered(rows: int, *, seed: int = 0, unit: bool = True) -> Floats:
    """Vectors around 50 centers, of lengths from 0.5 to 2 or of length 1."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((50, DIMS))[random.integers(0, 50, rows)]
    vectors += random.standard_normal((rows, DIMS)) / 2
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors if unit else vectors * random.uniform(0.5, 2, (rows, 1))).astype(np.float32)


def write_vectors(
    path: Path,
    vectors: Floats,
    *,
    missing: tuple[int, ...] = (),
    dtype: VectorDtype = "float32",
    normalize: bool = True,
) -> Path:
    """Write a finished output of `vectors` in one record batch, in which the rows `missing` have none."""
    rows, ranges = len(vectors), ranges_of(vectors)
    metadata = make_schema(dtype=dtype, normalize=normalize, dims=DIMS).metadata
    if dtype == "int8":
        metadata[b"fastvec.ranges"] = ranges_to_json(ranges).encode()
    fields = [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("embedding", column_type(DIMS, dtype)),
    ]
    valid = ~np.isin(np.arange(rows), missing)
    writer = Writer.open(path, make_job())
    writer.begin(pa.schema(fields, metadata=metadata))
    column = to_column(vectors, valid, dtype, ranges)
    batch = pa.record_batch([pa.array(np.arange(rows)), column], schema=pa.schema(fields, metadata=metadata))
    writer.write(batch.cast(writer.schema), counts={"nulls": len(missing)}, errors=[], batch_tokens=1)
    writer.finish([])
    return path
