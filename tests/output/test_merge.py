"""`fastvec merge`: several outputs of the same settings become one that passes every check."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastvec import convert, merge
from fastvec.errors import FastvecError, RefusedError
from fastvec.output.inspect import inspect
from fastvec.output.verify import verify
from fastvec.output.writer import Writer, finished_counts
from tests.helpers.outputs import make_chunk, make_job, make_schema, read_output


def write_part(
    path: Path, name: str, chunks: int, *, dtype: str = "float32", schema: pa.Schema | None = None, **fields: Any
) -> Path:
    """Write an output of `chunks` chunks of five rows, from the input `name`."""
    schema = make_schema(dtype=dtype) if schema is None else schema
    inputs = json.dumps([{"uri": name, "first_row": 0, "rows": chunks * 5}]).encode()
    settings = {"inputs": [[name, 1000, 17]], "column": "text", "keep": ["id"], "rows": chunks * 5, **fields}
    writer = Writer.open(path, make_job(**settings))
    writer.begin(schema.with_metadata({**schema.metadata, b"fastvec.inputs": inputs}))
    for index in range(chunks):
        batch, counts, errors = make_chunk(index, dtype=dtype)
        writer.write(batch.cast(writer.schema), counts=counts, errors=errors, batch_tokens=1024)
    writer.finish([])
    return path


def checks(path: Path) -> dict[str, str]:
    return {check.name: check.detail for check in verify(path).checks if not check.passed}


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_rows_inputs_and_counts_are_joined(tmp_path: Path, dtype: str) -> None:
    first = write_part(tmp_path / "first.arrow", "x.parquet", 3, dtype=dtype)
    second = write_part(tmp_path / "second.arrow", "y.parquet", 2, dtype=dtype, column="body")
    target = tmp_path / "all.arrow"
    written = merge([first, second], target)

    assert checks(target) == {}
    tables = [read_output(first), read_output(second)]
    table = read_output(target)
    for name in ("id", "embedding"):
        assert table[name].to_pylist() == [*tables[0][name].to_pylist(), *tables[1][name].to_pylist()]
    assert table["row"].to_pylist() == list(range(25))
    assert str(written) == f"{target}: 25 rows, {target.stat().st_size / 1e6:.1f} MB"
    summary = inspect(target)
    assert summary.counts == {"errors": 2, "nulls": 5, "tokens": 204, "truncated": 2}
    assert summary.inputs == [
        {"uri": "x.parquet", "first_row": 0, "rows": 15},
        {"uri": "y.parquet", "first_row": 15, "rows": 10},
    ]
    changed = (b"fastvec.inputs", b"fastvec.fingerprint")
    metadata = [{k: v for k, v in one.schema.metadata.items() if k not in changed} for one in (table, *tables)]
    assert metadata[0] == metadata[1] == metadata[2]


def test_merged_outputs_and_parquet_outputs_are_merged_too(tmp_path: Path) -> None:
    parts = [write_part(tmp_path / f"{name}.arrow", f"{name}.parquet", 2) for name in "abc"]
    merge(parts[:2], tmp_path / "ab.parquet")
    merge([tmp_path / "ab.parquet", parts[2]], tmp_path / "abc.arrow")
    merge(parts, tmp_path / "at-once.arrow")
    for name in ("ab.parquet", "abc.arrow", "at-once.arrow"):
        assert checks(tmp_path / name) == {}
    found, expected = read_output(tmp_path / "abc.arrow"), read_output(tmp_path / "at-once.arrow")
    assert found.equals(expected)
    assert found.schema.metadata == expected.schema.metadata
    convert(tmp_path / "abc.arrow", tmp_path / "abc.parquet")
    assert pq.read_table(tmp_path / "abc.parquet").equals(expected)


def test_it_is_no_other_jobs_output(tmp_path: Path) -> None:
    """A run over both inputs might have other rows, with --limit, and other batches."""
    parts = [write_part(tmp_path / f"{name}.arrow", f"{name}.parquet", 2) for name in "ab"]
    target = tmp_path / "all.arrow"
    merge(parts, target)
    fingerprint = json.loads(read_output(target).schema.metadata[b"fastvec.fingerprint"])
    assert fingerprint == {
        "model": "tiny",
        "dims": 8,
        "keep": ["id"],
        "merged": [{"inputs": [[f"{name}.parquet", 1000, 17]], "column": "text", "rows": 10} for name in "ab"],
    }
    both = make_job(inputs=[["a.parquet", 1000, 17], ["b.parquet", 1000, 17]], column="text", keep=["id"], rows=20)
    with pytest.raises(RefusedError, match=r"all\.arrow belongs to another job: merged was "):
        finished_counts(target, both)


def test_what_cannot_be_joined_is_told_in_one_line(tmp_path: Path) -> None:
    first = write_part(tmp_path / "first.arrow", "x.parquet", 1)
    target = tmp_path / "all.arrow"

    def problem(*paths: Path, to: Path = target) -> str:
        with pytest.raises(FastvecError) as refused:
            merge(paths, to)
        assert not target.exists()
        assert "\n" not in str(refused.value)
        return str(refused.value).replace(f"{tmp_path}/", "")

    other = write_part(tmp_path / "other.arrow", "y.parquet", 1, pooling="last", model="large")
    assert problem(first, other) == (
        'other.arrow cannot be joined to first.arrow, they differ: model was "tiny", now "large"; '
        'pooling was null, now "last"'
    )
    ranges = {**make_schema(dtype="int8").metadata, b"fastvec.ranges": json.dumps([1.0] * 8)}
    schemas = make_schema(dtype="int8"), make_schema(dtype="int8").with_metadata(ranges)
    ints = [write_part(tmp_path / f"int{i}.arrow", "z", 1, dtype="int8", schema=one) for i, one in enumerate(schemas)]
    assert problem(*ints) == (
        "int1.arrow cannot be joined to int0.arrow, they differ: int8 ranges, of each run's first texts: "
        "embed in one run, or with --vector-dtype float16"
    )
    wide = write_part(tmp_path / "wide.arrow", "w", 1, schema=make_schema().set(0, pa.field("id", pa.large_string())))
    assert problem(first, wide) == (
        "wide.arrow cannot be joined to first.arrow, they differ: columns were id (string), now id (large_string)"
    )
    assert problem(first, first) == "a file was given twice: its rows would be in the output twice"
    assert problem() == "no output was given: name the files to join"
    assert problem(first, tmp_path / "no.arrow") == "no.arrow cannot be read: No such file or directory"
    assert problem(first, to=tmp_path / "all.npy") == (
        "all.npy ends in neither .arrow nor .parquet, the formats that can be written"
    )


def test_an_existing_file_is_replaced_only_by_overwrite(tmp_path: Path) -> None:
    part, target = write_part(tmp_path / "a.arrow", "a.parquet", 1), tmp_path / "all.arrow"
    merge([part], target)
    with pytest.raises(RefusedError, match=re.escape(f"{target} exists: replace it with --overwrite")):
        merge([part], target)
    assert merge([part], target, overwrite=True).rows == 5
    assert {path.name for path in tmp_path.iterdir()} == {"a.arrow", "all.arrow"}
