"""Whose output is it? What may exist at an output path, and what the command reports for each case."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import ipc

from fastvec.errors import OutputError, RefusedError
from fastvec.output.writer import Job, Writer, finished_counts
from tests.helpers.outputs import CHUNKS, ROWS, contents, make_job, make_schema, run_job, write_chunk

REMEDY = "; replace it with --overwrite, or choose another -o"


def interrupt(output: Path, *, model: str = "tiny", overwrite: bool = False) -> None:
    """Leave an unfinished output of two chunks."""
    writer = Writer.open(output, make_job(model=model), overwrite=overwrite)
    writer.begin(make_schema())
    write_chunk(writer, 0)
    write_chunk(writer, 1)
    writer.close()


def assert_refused(output: Path, message: str, *, model: str = "tiny") -> None:
    """Check that `finished_counts` and `Writer.open` both raise `message` and change no file."""
    before = contents(output.parent)
    for look in (finished_counts, Writer.open):
        with pytest.raises(RefusedError, match=f"^{re.escape(message)}$"):
            look(output, make_job(model=model))
        assert contents(output.parent) == before


def rows_of(output: Path) -> int | None:
    counts = finished_counts(output, make_job())
    return None if counts is None else counts["rows"]


def test_nothing_is_there(output: Path) -> None:
    assert finished_counts(output, make_job()) is None
    assert contents(output.parent) == {}


def test_it_is_finished(output: Path) -> None:
    run_job(output)
    assert rows_of(output) == CHUNKS * ROWS
    assert finished_counts(output, make_job(), overwrite=True) is None
    assert_message = f"{output} was just finished by another run of the same command"
    with pytest.raises(RefusedError, match=re.escape(assert_message)):
        Writer.open(output, make_job())
    assert contents(output.parent).keys() == {"vecs.arrow", "vecs.errors.jsonl"}


def test_it_is_unfinished(output: Path) -> None:
    interrupt(output)
    assert finished_counts(output, make_job()) is None
    assert finished_counts(output, make_job(), overwrite=True) is None


def test_the_finished_output_is_of_another_job(output: Path) -> None:
    run_job(output, job=make_job(model="a"))
    assert_refused(output, f'{output} belongs to another job: model was "a", now "b"{REMEDY}', model="b")


def test_the_unfinished_work_is_of_another_job(output: Path) -> None:
    interrupt(output, model="a")
    assert_refused(output, f'{output}.part belongs to another job: model was "a", now "b"{REMEDY}', model="b")


def test_many_differences_are_counted(output: Path) -> None:
    run_job(output)
    with pytest.raises(RefusedError, match=r"a was null, now 1; .* e was null, now 1; and 2 more; replace it with"):
        finished_counts(output, make_job(**dict.fromkeys("abcdefg", 1)))


def test_work_in_which_nothing_is_durable_is_nobodys(output: Path) -> None:
    """The state after an early kill: a header and no chunk."""
    writer = Writer.open(output, make_job(model="a"))
    writer.begin(make_schema())
    left = contents(output.parent)
    writer.close()
    for name, content in left.items():
        (output.parent / name).write_bytes(content)
    assert finished_counts(output, make_job(model="b")) is None
    run_job(output, job=make_job(model="b"))
    assert contents(output.parent).keys() == {"vecs.arrow", "vecs.errors.jsonl"}


def test_an_interrupted_overwrite_of_the_same_job_goes_on(output: Path) -> None:
    run_job(output)
    finished = contents(output.parent)
    interrupt(output, overwrite=True)
    assert finished_counts(output, make_job()) is None
    writer = Writer.open(output, make_job())
    assert writer.rows == 2 * ROWS
    writer.close()
    run_job(output)
    assert contents(output.parent) == finished


def test_a_journal_left_by_a_kill_after_the_rename_is_deleted(output: Path) -> None:
    interrupt(output)
    journal = output.with_name("vecs.arrow.journal").read_bytes()
    run_job(output)
    finished = contents(output.parent)
    output.with_name("vecs.arrow.journal").write_bytes(journal)
    assert rows_of(output) == CHUNKS * ROWS
    assert contents(output.parent) == finished


def test_files_of_others_are_refused(output: Path) -> None:
    part = output.with_name("vecs.arrow.part")
    errors = output.with_name("vecs.errors.jsonl")

    part.write_text("a download")
    assert_refused(output, f"{part} has no journal, so its job is unknown{REMEDY}")
    part.unlink()

    for content in ('["something else"]\n', "[" * 100_000):
        errors.write_text(content)
        assert_refused(output, f"{errors} is not a list of row errors, but would be overwritten{REMEDY}")
    errors.unlink()

    for data in (b"", b"text", b"ARROW1\0\0 and no more"):
        output.write_bytes(data)
        assert_refused(output, f"{output} is not a finished fastvec output{REMEDY}")
    with ipc.new_file(str(output), pa.schema({"a": pa.int64()})):
        pass
    assert_refused(output, f"{output} is not a finished fastvec output{REMEDY}")
    whole = output.read_bytes()
    for byte in range(len(whole) // 2, len(whole)):  # the footer; Arrow also raises OSError and NotImplementedError
        damaged = bytearray(whole)
        damaged[byte] ^= 255
        output.write_bytes(damaged)
        assert_refused(output, f"{output} is not a finished fastvec output{REMEDY}")


def test_overwrite_replaces_any_of_these(output: Path) -> None:
    run_job(output)
    expected = contents(output.parent)
    output.write_text("text")
    output.with_name("vecs.arrow.part").write_text("a download")
    output.with_name("vecs.errors.jsonl").write_text("mine")
    run_job(output, overwrite=True)
    assert contents(output.parent) == expected


def test_a_running_process_holds_it(output: Path) -> None:
    writer = Writer.open(output, make_job())
    journal = f"{output}.journal"
    message = f"{journal} is locked by a running process: wait for it, or give another output"
    assert_refused(output, message)
    with pytest.raises(RefusedError, match=re.escape(message)):
        Writer.open(output, make_job(), overwrite=True)
    writer.close()
    assert finished_counts(output, make_job()) is None


@pytest.mark.parametrize("look", [finished_counts, Writer.open])
def test_a_place_where_nothing_can_be_written(output: Path, look: Callable[[Path, Job], object]) -> None:
    missing = output.parent / "missing" / "vecs.arrow"
    with pytest.raises(OutputError, match="missing is not a folder: create it, or choose another"):
        look(missing, make_job())
    output.mkdir()
    with pytest.raises(OutputError, match=re.escape(f"{output} is a folder: name a file in it, such as {output}/vecs")):
        look(output, make_job())
    assert contents(output) == {}
    output.rmdir()
    os.mkfifo(output)  # opening a pipe would block
    with pytest.raises(OutputError, match=r"vecs\.arrow is not a regular file: choose another output"):
        look(output, make_job())


def test_an_errors_file_that_is_a_pipe_is_not_waited_for(output: Path) -> None:
    os.mkfifo(output.with_name("vecs.errors.jsonl"))
    with pytest.raises(RefusedError, match=r"vecs.errors.jsonl is not a list of row errors, but would be overwritten"):
        finished_counts(output, make_job())
