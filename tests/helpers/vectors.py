"""Outputs with given vectors, written by the real writer without a model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.output.vector_column import VectorDtype, from_values, ranges_of, ranges_to_json, to_column
from fastvec.output.writer import Job, Writer

Array = npt.NDArray[np.float32]


def unit(vectors: Array) -> Array:
    scaled: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def random_vectors(rows: int, dims: int = 16, seed: int = 0) -> Array:
    """Return unit vectors [rows, dims]."""
    return unit(np.random.default_rng(seed).standard_normal((rows, dims)).astype(np.float32))


def write_vectors(
    path: Path,
    vectors: Array,
    *,
    missing: tuple[int, ...] = (),
    dtype: VectorDtype = "float32",
    normalize: bool = True,
    batch_rows: int = 32,
    **columns: list[Any],
) -> Array:
    """Write a finished output of `vectors` [n, D] and kept `columns`; the rows `missing` have no vector.

    Return the vectors as they are stored, in float32.
    """
    ranges = ranges_of(vectors) if dtype == "int8" else None
    valid = np.ones(len(vectors), dtype=np.bool_)
    valid[list(missing)] = False
    own = {
        "model": "tiny",
        "inputs": json.dumps([{"uri": "a.parquet", "first_row": 0, "rows": len(vectors)}]),
        "column": "text",
        "dims": str(vectors.shape[1]),
        "vector_dtype": dtype,
        "vector_column": "embedding",
        "normalize": json.dumps(normalize),
        **({} if ranges is None else {"ranges": ranges_to_json(ranges)}),
    }
    fingerprint = {"inputs": [["a.parquet", 1, 1]], "dims": vectors.shape[1], "vector_dtype": dtype}
    table = pa.table(
        {
            **columns,
            "row": pa.array(range(len(vectors)), pa.int64()),
            "embedding": to_column(vectors, valid, dtype, ranges),
        }
    )
    schema = table.schema.set(len(columns), pa.field("row", pa.int64(), nullable=False))
    writer = Writer.open(path, Job(fingerprint=fingerprint, environment={}, limits={}))
    writer.begin(schema.with_metadata({f"fastvec.{name}": text for name, text in own.items()}))
    for begin in range(0, len(vectors), batch_rows):
        (batch,) = table.slice(begin, batch_rows).combine_chunks().to_batches()
        counts = {"nulls": int((~valid[begin : begin + batch_rows]).sum())}
        written = pa.RecordBatch.from_arrays(batch.columns, schema=writer.schema)
        writer.write(written, counts=counts, errors=[], batch_tokens=0)
    writer.finish([])
    column = to_column(vectors, np.ones_like(valid), dtype, ranges)
    values = column.values.to_numpy(zero_copy_only=False)
    return from_values(values.reshape(len(vectors), column.type.list_size), dtype, ranges)
