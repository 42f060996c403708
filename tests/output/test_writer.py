import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import ipc

from fastvec.errors import OutputError
from fastvec.output import writer as writer_module
from fastvec.output.writer import RowError, Writer
from tests import ROOT
from tests.helpers.outputs import (
    CHUNKS,
    ROWS,
    contents,
    make_chunk,
    make_job,
    make_schema,
    run_job,
    start_job,
    write_chunk,
)

COUNTS = {"nulls": 7, "truncated": 3, "errors": 2, "tokens": 301}


def test_a_finished_output_holds_every_chunk(output: Path) -> None:
    done = run_job(output)
    assert done is not None
    assert (done.rows, done.chunks, done.counts, done.warnings) == (CHUNKS * ROWS, CHUNKS, COUNTS, [])
    assert done.errors == [RowError(row=9, code="not_finite"), RowError(row=24, code="not_finite")]

    with ipc.open_file(str(output)) as reader:
        assert reader.num_record_batches == CHUNKS
        assert reader.read_all() == pa.Table.from_batches([make_chunk(i)[0] for i in range(CHUNKS)])
        own = reader.schema.metadata
        assert json.loads(own.pop(b"fastvec.fingerprint")) == make_job().fingerprint
        assert own == {**make_schema().metadata, b"fastvec.format": b"1"}
        assert reader.metadata.keys() == {
            b"fastvec.rows", b"fastvec.counts", b"fastvec.batches", b"fastvec.errors_crc32", b"fastvec.checksum"
        }  # fmt: skip
        assert (int(reader.metadata[b"fastvec.rows"]), json.loads(reader.metadata[b"fastvec.counts"])) == (35, COUNTS)
    assert contents(output.parent).keys() == {"vecs.arrow", "vecs.errors.jsonl"}
    errors = output.with_name("vecs.errors.jsonl").read_text()
    assert errors == '{"row": 9, "code": "not_finite"}\n{"row": 24, "code": "not_finite"}\n'


def test_an_output_without_rows_is_an_output(output: Path) -> None:
    run_job(output, chunks=0)
    with ipc.open_file(str(output)) as reader:
        assert reader.read_all() == make_schema().empty_table()
        assert reader.metadata[b"fastvec.rows"] == b"0"
    assert run_job(output) is None


def test_an_interrupted_run_goes_on_where_it_was(output: Path, expected: dict[str, bytes]) -> None:
    writer = start_job(output, 3)
    assert (writer.rows, writer.chunks, len(writer.errors)) == (0, 0, 1)
    writer.close()
    assert writer.rows == 3 * ROWS
    assert contents(output.parent).keys() == {"vecs.arrow.part", "vecs.arrow.journal"}

    resumed = Writer.open(output, make_job())
    assert (resumed.rows, resumed.chunks, resumed.batch_tokens, resumed.warnings) == (3 * ROWS, 3, 1024, [])
    assert resumed.counts == {"nulls": 3, "truncated": 1, "errors": 1, "tokens": 123}
    assert resumed.errors == [RowError(row=9, code="not_finite")]
    assert resumed.schema == make_schema()
    resumed.close()

    run_job(output)
    assert contents(output.parent) == expected


def test_a_resume_keeps_the_limits_and_warns_of_another_environment(output: Path) -> None:
    start_job(output, 1).close()
    job = make_job()
    later = type(job)(
        fingerprint=job.fingerprint, environment={"torch": "2.14.0", "device": "cpu"}, limits={"rows": 1000}
    )
    resumed = Writer.open(output, later)
    resumed.close()
    assert resumed.limits == {"rows": ROWS}
    assert resumed.warnings == [
        'torch was "2.13.0", now "2.14.0": new vectors may differ from the earlier ones in the last digits'
    ]


def test_nothing_is_left_where_nothing_became_durable(output: Path) -> None:
    Writer.open(output, make_job()).close()
    assert contents(output.parent) == {}
    start_job(output, 0).close()
    assert contents(output.parent) == {}


def test_an_exception_finishes_nothing(output: Path, expected: dict[str, bytes]) -> None:
    writer = start_job(output, 2)
    wrong = make_chunk(2, dtype="float16")[0]
    with pytest.raises(ValueError, match="expected a batch with the output's schema"):
        writer.write(wrong, counts={}, errors=[], batch_tokens=1)
    writer.close()
    writer.close()
    assert not output.exists()
    with pytest.raises(RuntimeError, match="the writer has not begun, is closed, or has failed"):
        write_chunk(writer, 2)
    run_job(output)
    assert contents(output.parent) == expected


def test_a_column_that_cannot_be_written_is_refused_before_anything_is(output: Path) -> None:
    writer = Writer.open(output, make_job())
    with pytest.raises(OutputError, match="column kept is dictionary"):
        writer.begin(make_schema().append(pa.field("kept", pa.dictionary(pa.int32(), pa.string()))))
    writer.close()
    assert contents(output.parent) == {}


@pytest.mark.parametrize(
    ("group_bytes", "seconds", "rows"),
    [(1e9, 0.0, [0] * 5), (1200, 0.0, [0, 0, 15, 15, 15]), (1e9, 0.9, [0, 0, 15, 15, 15])],
)
def test_commits_come_in_groups(
    output: Path, monkeypatch: pytest.MonkeyPatch, group_bytes: float, seconds: float, rows: list[int]
) -> None:
    """By size or time: a chunk has 552 bytes; the clock is read twice per chunk and advances `seconds` each time."""
    clock = iter(range(1000))
    monkeypatch.setattr(writer_module, "GROUP_BYTES", group_bytes)
    monkeypatch.setattr("time.monotonic", lambda: next(clock) * seconds)
    writer = start_job(output, 0)
    durable = []
    for index in range(5):
        write_chunk(writer, index)
        durable.append(writer.rows)
    writer.close()
    assert durable == rows
    assert writer.rows == 5 * ROWS


def test_overwrite_leaves_the_old_output_readable_until_the_end(output: Path, expected: dict[str, bytes]) -> None:
    run_job(output, job=make_job(model="old"), chunks=2)
    old = output.read_bytes()
    writer = Writer.open(output, make_job(), overwrite=True)
    writer.begin(make_schema())
    for index in range(CHUNKS):
        write_chunk(writer, index)
    writer.close()
    assert output.read_bytes() == old

    resumed = Writer.open(output, make_job(), overwrite=True)
    assert resumed.rows == CHUNKS * ROWS  # unfinished work of the same job is never discarded
    resumed.close()
    run_job(output, overwrite=True)
    assert contents(output.parent) == expected


def test_overwrite_discards_another_jobs_work_only_when_it_begins(output: Path, expected: dict[str, bytes]) -> None:
    start_job(output, 3).close()
    before = contents(output.parent)
    another = Writer.open(output, make_job(model="another"), overwrite=True)
    assert (another.rows, another.schema) == (0, None)
    another.close()  # as happens when the model cannot be loaded
    assert contents(output.parent) == before

    another = Writer.open(output, make_job(model="another"), overwrite=True)
    another.begin(make_schema())
    write_chunk(another, 0)
    another.close()
    run_job(output, overwrite=True)
    assert contents(output.parent) == expected


def test_an_errors_file_of_an_earlier_run_goes(output: Path) -> None:
    run_job(output, job=make_job(model="old"))
    assert output.with_name("vecs.errors.jsonl").exists()
    run_job(output, chunks=1, overwrite=True)  # the only chunk has no errors
    assert contents(output.parent).keys() == {"vecs.arrow"}


@pytest.mark.parametrize(("damage", "found"), [("gone", "is missing"), ("flipped", "is damaged in its first batch")])
def test_a_part_without_a_sound_batch_is_refused(output: Path, damage: str, found: str) -> None:
    start_job(output, 3).close()
    part = output.with_name("vecs.arrow.part")
    content = part.read_bytes()
    part.unlink()
    if damage == "flipped":
        part.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(OutputError) as error:
        run_job(output)
    assert str(error.value) == (
        f"{part} {found}, though vecs.arrow.journal lists 3: delete both files and run the command again"
    )


@pytest.mark.parametrize(("damage", "sound"), [("short", 2), ("flipped", 1)])
def test_a_damaged_part_keeps_the_rows_before(
    output: Path, expected: dict[str, bytes], damage: str, sound: int
) -> None:
    start_job(output, 3).close()
    part = output.with_name("vecs.arrow.part")
    content = part.read_bytes()
    begin, end = len(content) - (3 - sound) * 552, len(content) - (2 - sound) * 552
    part.write_bytes(
        content[:-1] if damage == "short" else content[: end - 1] + bytes([content[end - 1] ^ 1]) + content[end:]
    )
    opened = Writer.open(output, make_job())
    opened.close()
    assert opened.rows == sound * ROWS
    assert opened.warnings == [
        f"{part} is damaged: batch {sound} (rows {sound * ROWS} to {sound * ROWS + 4}, bytes {begin:,} to {end - 1:,}) "
        f"is not what was written; the {sound * ROWS} rows before it are kept, and the others are embedded again"
    ]
    run_job(output)
    assert contents(output.parent) == expected


def test_memory_does_not_grow_with_the_chunks(output: Path) -> None:
    before = pa.total_allocated_bytes()
    writer = start_job(output, 300)
    assert pa.total_allocated_bytes() <= before
    writer.close()


def test_the_writer_starts_without_torch() -> None:
    code = "import sys, fastvec.output.writer, fastvec.output.verify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
