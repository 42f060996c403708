import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc

from fastvec.output.inspect import inspect
from tests.helpers.outputs import CHUNKS, DIMS, ROWS, make_schema, run_job, write_output


def test_inspect_shows_one_screen(output: Path) -> None:
    run_job(output)
    assert str(inspect(str(output))) == "\n".join(
        [
            f"file         {output}, {output.stat().st_size:,} bytes, by fastvec 0.1.0",
            "model        hub/tiny",
            "revision     0123abc",
            "weights      89abcdef89ab",
            "attention    bidirectional",
            "pooling      mean, text tokens",
            "instruction  none",
            "rows         35, 9 of them without a vector",
            "vectors      embedding, 8 dimensions, float32, normalized",
            "norms        1.0000 to 1.0000, mean 1.0000, over 26 vectors",
            "kept         id (string)",
            "inputs       a.parquet (12 rows), b.parquet (23 rows)",
            "counts       2 errors, 7 nulls, 301 tokens, 3 truncated",
        ]
    )
    document = json.loads(json.dumps(inspect(output).to_json()))
    assert document["counts"] == {"errors": 2, "nulls": 7, "tokens": 301, "truncated": 3}
    assert document["kept"] == {"id": "string"}
    assert document["inputs"][1] == {"uri": "b.parquet", "first_row": 12, "rows": 23}
    assert (document["rows"], document["nulls"], document["dims"]) == (35, 9, DIMS)
    assert document["size_bytes"] == output.stat().st_size
    assert inspect(output).return_code == 0


def test_inspect_shows_no_escape_sequences(output: Path) -> None:
    schema = make_schema()
    inputs = [{"uri": f"{name}.parquet", "first_row": 0, "rows": 0} for name in "abcde"]
    changed = {b"fastvec.instruction": b"\x1b[31mRed\nBlue", b"fastvec.inputs": json.dumps(inputs).encode()}
    write_output(output, [pa.RecordBatch.from_pylist([], schema.with_metadata({**schema.metadata, **changed}))])
    lines = str(inspect(output)).splitlines()
    assert r"instruction  \x1b[31mRed\nBlue" in lines
    assert "inputs       a.parquet (0 rows), b.parquet (0 rows), c.parquet (0 rows), and 2 more" in lines
    assert "norms        none" in lines


def test_norms_are_of_what_the_vectors_stand_for(output: Path) -> None:
    run_job(output, dtype="int8")
    ranges = np.array([0.5 + i / 8 for i in range(DIMS)])
    column = ipc.open_file(str(output)).read_all().column("embedding").combine_chunks()
    codes = np.array([vector for vector in column.to_pylist() if vector is not None])
    lengths = np.linalg.norm(codes * ranges / 127, axis=1)
    norms = inspect(output).norms
    assert norms is not None
    assert norms.vectors == CHUNKS * ROWS - 9
    expected = [lengths.min(), lengths.mean(), lengths.max()]
    assert [norms.minimum, norms.mean, norms.maximum] == pytest.approx(expected)
    run_job(output, dtype="binary", overwrite=True)
    assert inspect(output).norms is None


def test_long_outputs_are_sampled(output: Path) -> None:
    run_job(output, chunks=100)
    norms = inspect(output).norms
    assert norms is not None
    assert norms.vectors == sum(ROWS - 1 - (index % 3 == 1) for index in range(0, 100, 6))
