"""What `verify` finds and `inspect` shows in files from the real writer."""

import json
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import ipc

from fastvec.errors import OutputError
from fastvec.output.inspect import inspect
from fastvec.output.reader import read_output
from fastvec.output.verify import Verification, verify
from fastvec.output.writer import Writer
from tests.helpers.outputs import (
    CHUNKS,
    DIMS,
    ROWS,
    make_chunk,
    make_job,
    make_schema,
    run_job,
    write_chunk,
    write_output,
)

CHECKS = ["file", "head", "batches", "footer", "columns", "rows", "order", "inputs", "nulls", "finite", "unit length"]
ERRORS = ["row errors"]  # that the output has


def failures(report: Verification) -> dict[str, str]:
    assert report.return_code == (not all(check.passed for check in report.checks))
    return {check.name: check.detail for check in report.checks if not check.passed}


@pytest.mark.parametrize(
    ("dtype", "normalize", "checks"),
    [
        ("float32", True, [*CHECKS, *ERRORS]),
        ("float32", False, [*CHECKS[:-1], *ERRORS]),
        ("float16", True, [*CHECKS, *ERRORS]),
        ("int8", True, [*CHECKS[:5], "ranges", *CHECKS[5:-1], *ERRORS]),
        ("binary", True, [*CHECKS[:-1], *ERRORS]),
    ],
)
def test_a_sound_output_passes_every_check(output: Path, dtype: str, normalize: bool, checks: list[str]) -> None:
    run_job(output, dtype=dtype, normalize=normalize)
    report = verify(str(output))
    assert failures(report) == {}
    assert [check.name for check in report.checks] == checks
    assert str(report).splitlines()[-1] == f"{output}: all {len(checks)} checks passed"
    assert report.to_json()["passed"] is True
    assert json.loads(json.dumps(report.to_json()))["checks"][0] == {
        "name": "file",
        "passed": True,
        "detail": "a finished output in format 1",
    }


def test_an_output_without_rows_passes(output: Path) -> None:
    schema = make_schema()
    inputs = {b"fastvec.inputs": b'[{"uri": "a.parquet", "first_row": 0, "rows": 0}]'}
    write_output(output, [pa.RecordBatch.from_pylist([], schema.with_metadata({**schema.metadata, **inputs}))])
    assert failures(verify(output)) == {}
    assert inspect(output).norms is None


def test_damage_is_told_by_its_place(output: Path) -> None:
    run_job(output)
    sound = output.read_bytes()
    blocks = read_output(output).blocks

    def failures_with_flip_at(at: int) -> dict[str, str]:
        output.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
        return failures(verify(output))

    def place(index: int) -> str:
        begin = blocks[index - 1].end_offset if index else 0
        end = blocks[index].end_offset - 1
        return f"batch {index} (rows {5 * index} to {5 * index + 4}, bytes {begin:,} to {end:,})"

    assert failures_with_flip_at(blocks[3].end_offset - 9) == {"batches": f"{place(3)} does not match its CRC32"}
    assert failures_with_flip_at(sound.index(b"hub/tiny")) == {
        "head": "does not match the schema in the footer",
        "batches": f"{place(0)} does not match its CRC32",
    }
    assert failures_with_flip_at(sound.index(b'"tokens": 301') + 12) == {
        "file": f"{output} has a damaged footer: its metadata, which stand after all rows, fail their checksum"
    }
    (footer_length,) = struct.unpack("<i", sound[-10:-6])
    assert failures_with_flip_at(len(sound) - 10 - footer_length - 3) == {
        "footer": f"what follows byte {blocks[-1].end_offset:,} does not match the batches and counts"
    }
    places = [blocks[index].end_offset - 9 for index in (1, 2, 4, 6)]
    output.write_bytes(bytes(byte ^ (at in places) for at, byte in enumerate(sound)))
    assert failures(verify(output)) == {
        "batches": f"{place(1)}, {place(2)}, {place(4)} and 1 more do not match their CRC32"
    }


def test_files_that_are_no_output_are_told_in_one_line(output: Path) -> None:
    def only_problem() -> str:
        with pytest.raises(OutputError) as refused:
            inspect(output)
        assert failures(verify(output)) == {"file": str(refused.value)}
        assert str(verify(output)).splitlines()[-1] == f"{output}: 1 of 1 checks failed"
        return str(refused.value).removeprefix(f"{output} ")

    assert only_problem() == "cannot be read: No such file or directory"
    output.write_bytes(b"PAR1 and so on")
    assert only_problem() == "starts as a Parquet file but has no valid footer: it is truncated or damaged"
    output.write_bytes(b"")
    assert only_problem() == "is neither an Arrow IPC file nor a Parquet file"
    with ipc.new_stream(str(output), pa.schema({"a": pa.int64()})):
        pass
    assert only_problem() == "is neither an Arrow IPC file nor a Parquet file"
    with ipc.new_file(str(output), pa.schema({"a": pa.int64()})):
        pass
    assert only_problem() == "is an Arrow file, but not an output of this version of fastvec"
    pq.write_table(pa.table({"a": [1]}), output)
    assert only_problem() == "is a Parquet file, but not an output of this version of fastvec"

    run_job(output, overwrite=True)
    output.write_bytes(output.read_bytes()[:-100])
    assert only_problem() == "starts as an Arrow IPC file but has no valid footer: it is truncated or damaged"
    output.unlink()
    output.mkdir()
    assert only_problem() == "is a folder: if it is an output in shards, fastvec merge makes one file of it"
    output.rmdir()
    os.mkfifo(output)
    assert only_problem() == "is a special file, not an output"
    output = output.with_name("v" * 300)
    assert only_problem() == "cannot be read: File name too long"


def test_a_name_that_is_not_utf8_is_read(output: Path) -> None:
    run_job(output)
    renamed = output.rename(output.with_name("v\udcff.arrow"))
    output.with_name("vecs.errors.jsonl").rename(output.with_name("v\udcff.errors.jsonl"))
    assert failures(verify(renamed)) == {}
    assert inspect(renamed).rows == CHUNKS * ROWS


def test_an_unfinished_output_is_told_in_one_line(output: Path) -> None:
    writer = Writer.open(output, make_job())
    writer.begin(make_schema())
    write_chunk(writer, 0)
    writer.close()
    part = output.with_name("vecs.arrow.part")
    message = f"{part} is unfinished: run the same command again to resume it"
    assert failures(verify(part)) == {"file": message}
    with pytest.raises(OutputError, match=re.escape(message)):
        inspect(part)


def test_metadata_that_say_nothing_usable_are_told(output: Path) -> None:
    schema = make_schema()
    for key, value in (("dims", "many"), ("vector_dtype", "float64"), ("inputs", "{"), ("inputs", '[{"rows": 1}]')):
        changed = {**schema.metadata, f"fastvec.{key}".encode(): value}
        batch = pa.RecordBatch.from_pylist([], schema.with_metadata(changed))
        write_output(output, [batch])
        assert failures(verify(output))["file"].startswith(f"{output} has damaged metadata: ")
        output.unlink()


def chunks_of(*, normalize: bool = True) -> list[pa.RecordBatch]:
    return [make_chunk(index, normalize=normalize)[0] for index in range(CHUNKS)]


def with_column(batch: pa.RecordBatch, name: str, values: Sequence[object]) -> pa.RecordBatch:
    index = batch.schema.get_field_index(name)
    columns = [*batch.columns[:index], pa.array(values, batch.schema.field(name).type), *batch.columns[index + 1 :]]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def with_vector(batch: pa.RecordBatch, i: int, vector: list[float | None]) -> pa.RecordBatch:
    vectors = batch.column("embedding").to_pylist()
    return with_column(batch, "embedding", [*vectors[:i], vector, *vectors[i + 1 :]])


def test_values_that_break_a_promise_are_found(output: Path) -> None:
    """Each failure names the first wrong row; the bytes themselves are undamaged."""

    def failures_of(batches: Sequence[pa.RecordBatch], nulls: int = 9) -> dict[str, str]:
        write_output(output, batches, nulls=nulls)
        found = failures(verify(output))
        output.unlink()
        return found

    sound = chunks_of()
    nan: list[float | None] = [float("nan"), *[0.0] * (DIMS - 1)]
    long: list[float | None] = [1.0, 0.0, 0.03, *[0.0] * (DIMS - 3)]
    assert failures_of(sound) == {}
    assert failures_of(sound, nulls=8) == {"nulls": "9, the metadata says 8"}
    assert failures_of(sound[:6], nulls=8) == {"inputs": "they have 35 rows, the output 30"}
    assert failures_of([sound[1], sound[0], *sound[2:]]) == {"order": "row 0 is numbered 5"}
    swapped = with_column(sound[2], "row", [10, 12, 11, 13, 14])
    assert failures_of([*sound[:2], swapped, *sound[3:]]) == {"order": "row 11 is numbered 12"}
    assert failures_of([*sound[:2], with_vector(sound[2], 3, nan), with_vector(sound[3], 3, nan), *sound[4:]]) == {
        "finite": "row 13 has a value that is not a finite number"
    }
    assert failures_of([*sound[:2], with_vector(sound[2], 3, long), *sound[3:]]) == {
        "unit length": "row 13 has length 1.000450"
    }
    with_null_in_it = with_vector(sound[2], 3, [None, 1.0, *[0.0] * (DIMS - 2)])
    assert failures_of([*sound[:2], with_null_in_it, *sound[3:]]) == {
        "finite": "row 13 has a value that is not a finite number"
    }


def test_vectors_that_promise_no_length_may_have_any(output: Path) -> None:
    batches = chunks_of(normalize=False)
    write_output(output, batches, nulls=9)
    assert failures(verify(output)) == {}


def test_columns_and_ranges_must_be_as_promised(output: Path) -> None:
    """`inspect` rejects what `verify` finds here."""

    def failures_with(dtype: str, names: Sequence[str] = ("id", "row", "embedding"), **metadata: str | None) -> object:
        schema = make_schema(dtype=dtype)
        changed = {f"fastvec.{key}".encode(): value for key, value in metadata.items()}
        known = {key: value for key, value in {**schema.metadata, **changed}.items() if value is not None}
        batches = [make_chunk(index, dtype=dtype)[0].rename_columns(names) for index in range(CHUNKS)]
        write_output(output, [batch.replace_schema_metadata(known) for batch in batches], nulls=9)
        found = failures(verify(output))
        for name, detail in found.items():
            with pytest.raises(OutputError, match=re.escape(f"does not match its metadata: {name}: {detail}")):
                inspect(output)
        output.unlink()
        return found

    assert failures_with("float32", dims="16") == {
        "columns": "embedding is fixed_size_list<item: float>[8], expected fixed_size_list<item: float>[16]"
    }
    assert failures_with("float32", vector_column="vector") == {
        "columns": "vector is missing, expected fixed_size_list<item: float>[8]"
    }
    assert failures_with("float32", vector_dtype="binary", dims="64") == {
        "columns": "embedding is fixed_size_list<item: float>[8], expected fixed_size_list<item: uint8>[8]"
    }
    twice = {"columns": "row is int64 and fixed_size_list<item: float>[8], expected fixed_size_list<item: float>[8]"}
    assert failures_with("float32", ["id", "row", "row"], vector_column="row") == twice
    for ranges in ("[1, 1]", "[1, 1, 1, 1, 1, 1, 1, NaN]", "[1, 1, 1, 1, 1, 1, 1, 0]", None):
        assert failures_with("int8", ranges=ranges) == {"ranges": "not a positive number for each dimension"}
