"""What is written is read back before it is published: a disk that returns something else is found in time."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fastvec.errors import OutputError
from fastvec.output import ownership, writer
from fastvec.output.reader import Output, read_output
from fastvec.output.writer import Writer
from fastvec.system import blocks as blocks_module
from tests.helpers.outputs import CHUNKS, ROWS, contents, make_job, run_job, start_job, write_chunk


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Return a function that makes the disk return another byte of the file with this suffix, from then on."""

    def at(suffix: str, place: int) -> None:
        def forget(path: Path) -> None:
            if path.name.endswith(suffix):
                flip(path, place)

        for module in (blocks_module, ownership):
            monkeypatch.setattr(module, "forget_cached", forget)

    return at


@pytest.mark.parametrize("batch", [0, 3, CHUNKS])
def test_a_damaged_batch_is_told_and_the_rows_before_it_are_kept(
    output: Path,
    expected: dict[str, bytes],
    spoil: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    batch: int,
) -> None:
    """The last of the blocks is the footer."""
    begin, *ends = [0, *(block.end_offset for block in read_output(tmp_path / "uninterrupted/vecs.arrow").blocks)]
    bounds = [begin, *ends, len(expected["vecs.arrow"])]
    spoil(".arrow.part", bounds[batch + 1] - 1)
    with pytest.raises(OutputError) as error:
        run_job(output)
    monkeypatch.undo()
    place = f"bytes {bounds[batch]:,} to {bounds[batch + 1] - 1:,}"
    rows = "the end (" if batch == CHUNKS else f"batch {batch} (rows {batch * ROWS} to {batch * ROWS + ROWS - 1}, "
    remedy = f"run the same command again, which keeps the first {batch * ROWS} rows"
    if batch == 0:
        remedy = "delete it and vecs.arrow.journal, and run the command again"
    part = output.with_name("vecs.arrow.part")
    assert str(error.value) == f"{part}: the disk does not return what was written: {rows}{place}); {remedy}"
    assert {path.name for path in output.parent.iterdir()} == {"vecs.arrow.part", "vecs.arrow.journal"}
    if batch == 0:
        part.unlink()
        output.with_name("vecs.arrow.journal").unlink()
    else:
        resumed = Writer.open(output, make_job())
        resumed.close()
        assert resumed.rows == batch * ROWS
    done = run_job(output)
    assert done is not None
    assert done.verified
    assert contents(output.parent) == expected


@pytest.mark.parametrize(
    ("suffix", "message"), [(".part", "batch 2 (rows 10 to 14"), (".tmp", "row group 0 (rows 0 to 34")]
)
def test_both_files_of_a_parquet_output_are_compared(
    tmp_path: Path,
    spoil: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    message: str,
) -> None:
    """The Arrow file when it is converted, without being read before; the result when it is read back."""
    output, whole = tmp_path / "vecs.parquet", tmp_path / "whole.parquet"
    run_job(whole)
    spoil("vecs.parquet.tmp", 100)
    if suffix == ".part":

        def spoiled(path: Path) -> Output:
            source = read_output(path)
            flip(path, 2900)
            return source

        monkeypatch.setattr(writer, "read_output", spoiled)
    with pytest.raises(OutputError) as error:
        run_job(output)
    monkeypatch.undo()
    assert f"vecs.parquet{suffix}: the disk does not return what was written: {message}" in str(error.value)
    assert not output.exists()
    assert not output.with_name("vecs.parquet.tmp").exists()
    run_job(output)
    assert output.read_bytes() == whole.read_bytes()


def test_the_row_errors_are_read_back(
    output: Path, expected: dict[str, bytes], spoil: Callable[[str, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(".errors.jsonl.part", 3)
    with pytest.raises(
        OutputError, match=r"vecs\.errors.jsonl.part: the disk does not return what was written; run the same"
    ):
        run_job(output)
    monkeypatch.undo()
    assert not output.exists()
    run_job(output)
    assert contents(output.parent) == expected


def test_nothing_is_read_back_if_that_is_unwanted(
    output: Path, expected: dict[str, bytes], spoil: Callable[[str, int], None]
) -> None:
    spoil("", 100)
    job = start_job(output, CHUNKS)
    job.finish([], verify=False)
    assert not job.verified
    assert contents(output.parent)["vecs.arrow"][:200] == expected["vecs.arrow"][:200]


def test_damage_that_stays_is_found_again(output: Path, spoil: Callable[[str, int], None]) -> None:
    """A disk that damages the same place each time never makes an output, and never loses the rows before it."""
    spoil(".arrow.part", 3700)
    for _ in range(3):
        with pytest.raises(OutputError, match="which keeps the first 20 rows"):
            run_job(output)
        assert not output.exists()


def test_the_end_of_a_resumed_run_is_read_back_too(output: Path, spoil: Callable[[str, int], None]) -> None:
    start_job(output, 2).close()
    resumed = Writer.open(output, make_job())
    for index in range(2, CHUNKS):
        write_chunk(resumed, index)
    spoil(".arrow.part", 2100)
    with pytest.raises(OutputError, match="batch 1"):
        resumed.finish([])
    resumed.close()
