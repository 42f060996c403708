"""Small outputs from the real writer, without a model: a job of seven chunks with null texts and row errors."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from fastvec.fingerprint import Json
from fastvec.output.writer import Job, RowError, Writer, finished_counts

DIMS = 8
ROWS = 5  # per chunk
CHUNKS = 7
VECTOR_TYPES = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}


def make_job(**fields: Json) -> Job:
    fingerprint: Mapping[str, Json] = {"inputs": [["corpus.parquet", 1000, 17]], "model": "tiny", "dims": DIMS}
    return Job(
        fingerprint={**fingerprint, **fields}, environment={"torch": "2.13.0", "device": "cpu"}, limits={"rows": ROWS}
    )


def make_schema(*, dtype: str = "float32", normalize: bool = True, dims: int = DIMS) -> pa.Schema:
    width = dims // 8 if dtype == "binary" else dims
    files = [{"uri": "a.parquet", "first_row": 0, "rows": 12}, {"uri": "b.parquet", "first_row": 12, "rows": 23}]
    metadata = {
        "fastvec.version": "0.1.0",
        "fastvec.model": "hub/tiny",
        "fastvec.revision": "0123abc",
        "fastvec.weights": "89abcdef" * 8,
        "fastvec.bidirectional": "true",
        "fastvec.pooling": "mean",
        "fastvec.pooled_tokens": "text",
        "fastvec.instruction": "",
        "fastvec.normalize": json.dumps(normalize),
        "fastvec.dims": str(dims),
        "fastvec.vector_dtype": dtype,
        "fastvec.vector_column": "embedding",
        "fastvec.inputs": json.dumps(files),
    }
    if dtype == "int8":
        metadata["fastvec.ranges"] = json.dumps([0.5 + i / 8 for i in range(dims)])
    fields = [
        pa.field("id", pa.string()),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("embedding", pa.list_(pa.field("item", VECTOR_TYPES[dtype]), width)),
    ]
    return pa.schema(fields, metadata=metadata)


def make_vectors(rows: int, *, dtype: str, normalize: bool, dims: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dims)).astype(np.float32)
    if normalize:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if dtype == "int8":
        return np.clip(np.rint(vectors * 40), -127, 127).astype(np.int8)
    if dtype == "binary":
        return np.packbits(vectors > 0, axis=1)
    return vectors.astype(dtype)


def make_chunk(
    index: int, *, dtype: str = "float32", normalize: bool = True, dims: int = DIMS, rows: int = ROWS
) -> tuple[pa.RecordBatch, dict[str, int], list[RowError]]:
    """Make chunk `index`: its second row has no text, and in every third chunk the last row has failed."""
    first = index * rows
    errors = [RowError(row=first + rows - 1, code="not_finite")] if index % 3 == 1 else []
    missing = np.zeros(rows, dtype=bool)
    missing[[1, *(error.row - first for error in errors)]] = True
    vectors = make_vectors(rows, dtype=dtype, normalize=normalize, dims=dims, seed=index)
    columns = [
        pa.array([None if row % 4 == 3 else f"doc {row}" for row in range(first, first + rows)]),
        pa.array(range(first, first + rows), pa.int64()),
        pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1], mask=pa.array(missing)),
    ]
    schema = make_schema(dtype=dtype, normalize=normalize, dims=dims)
    columns[2] = columns[2].cast(schema.field(2).type)
    counts = {"nulls": 1, "truncated": index % 2, "errors": len(errors), "tokens": 40 + index}
    return pa.RecordBatch.from_arrays(columns, schema=schema), counts, errors


def run_job(
    output: Path,
    *,
    chunks: int = CHUNKS,
    overwrite: bool = False,
    job: Job | None = None,
    dtype: str = "float32",
    normalize: bool = True,
) -> Writer | None:
    """Do what the command does: write what is missing, or return None if the output is already finished."""
    job = make_job() if job is None else job
    if finished_counts(output, job, overwrite=overwrite) is not None:
        return None
    writer = Writer.open(output, job, overwrite=overwrite)
    try:
        if writer.schema is None:
            writer.begin(make_schema(dtype=dtype, normalize=normalize))
        for index in range(writer.chunks, chunks):
            write_chunk(writer, index, dtype=dtype, normalize=normalize)
        writer.finish(f'{{"row": {error.row}, "code": "{error.code}"}}' for error in writer.errors)
    finally:
        writer.close()
    return writer


def write_chunk(writer: Writer, index: int, *, dtype: str = "float32", normalize: bool = True) -> None:
    batch, counts, errors = make_chunk(index, dtype=dtype, normalize=normalize)
    writer.write(batch, counts=counts, errors=errors, batch_tokens=1024)


def start_job(output: Path, chunks: int) -> Writer:
    """Start a job and write `chunks` chunks without finishing it."""
    writer = Writer.open(output, make_job())
    writer.begin(make_schema())
    for index in range(chunks):
        write_chunk(writer, index)
    return writer


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_output(output: Path, batches: Sequence[pa.RecordBatch], **counts: int) -> None:
    """Write a finished output of these record batches, whatever they contain."""
    writer = Writer.open(output, make_job())
    writer.begin(batches[0].schema)
    for index, batch in enumerate(batches):
        writer.write(batch, counts=counts if index == 0 else {}, errors=[], batch_tokens=1024)
    writer.finish([])


def read_output(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
