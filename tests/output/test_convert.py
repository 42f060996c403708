"""`fastvec convert`: what other tools read from its files, and that there is never half of one."""

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.faulting.machine import Machine
from fastvec import convert, merge
from fastvec.errors import DiskFullError, OutputError, RefusedError, UsageError
from fastvec.output import parquet_file
from fastvec.output.verify import verify
from fastvec.system.durable_files import replacing
from tests.helpers.outputs import DIMS, contents, make_chunk, read_output, run_job
from tests.helpers.outputs import write_output as write_batches
from tests.helpers.processes import environment

DTYPES = ["float32", "float16", "int8", "binary"]
SUFFIXES = [".parquet", ".npy", ".lance"]


@pytest.fixture
def arrow(output: Path) -> Path:
    run_job(output)
    return output


def vectors_of(arrow: Path) -> tuple[list[int], list[Any]]:
    """The rows that have a vector, and their vectors."""
    table = read_output(arrow)
    found = [(row, vector) for row, vector in enumerate(table["embedding"].to_pylist()) if vector is not None]
    return [row for row, _ in found], [vector for _, vector in found]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_parquet_is_what_embed_writes(output: Path, tmp_path: Path, dtype: str) -> None:
    run_job(output, dtype=dtype)
    embedded, converted = tmp_path / "embedded.parquet", tmp_path / "converted.parquet"
    run_job(embedded, dtype=dtype)
    written = convert(output, converted)
    assert converted.read_bytes() == embedded.read_bytes()
    assert str(written) == f"{converted}: 35 rows, 0.0 MB"
    assert (written.rows, written.left_out, written.size_bytes) == (35, 0, converted.stat().st_size)
    again = tmp_path / "again.parquet"
    convert(converted, again)
    assert pq.read_table(again).equals(read_output(output))
    assert verify(again).return_code == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_npy_has_the_vectors_and_their_row_numbers(output: Path, dtype: str) -> None:
    run_job(output, dtype=dtype)
    rows, expected = vectors_of(output)
    written = convert(output, output.with_name("v.npy"))
    vectors, numbers = (np.load(output.with_name(name), mmap_mode="r") for name in ("v.npy", "v.rows.npy"))
    assert vectors.dtype == {"int8": np.int8, "binary": np.uint8}.get(dtype, dtype)
    assert vectors.flags.c_contiguous
    assert np.array_equal(vectors, np.array(expected, vectors.dtype))
    assert (numbers.dtype, numbers.tolist()) == (np.int64, rows)
    assert str(written) == f"{output.with_name('v.npy')}: 26 rows, 0.0 MB; 9 rows without a vector were left out"
    assert written.size_bytes == sum(output.with_name(name).stat().st_size for name in ("v.npy", "v.rows.npy"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_npy_of_a_parquet_output_is_that_of_the_arrow_one(output: Path, dtype: str) -> None:
    """Where a vector is missing, Parquet has no values, and Arrow zeros."""
    run_job(output, dtype=dtype)
    convert(output, output.with_name("arrow.npy"))
    convert(output, output.with_suffix(".parquet"))
    convert(output.with_suffix(".parquet"), output.with_name("parquet.npy"))
    assert output.with_name("parquet.npy").read_bytes() == output.with_name("arrow.npy").read_bytes()


def test_faiss_searches_the_mapped_npy(arrow: Path) -> None:
    convert(arrow, arrow.with_name("v.npy"))
    vectors, numbers = (np.load(arrow.with_name(name), mmap_mode="r") for name in ("v.npy", "v.rows.npy"))
    index = faiss.IndexFlatIP(DIMS)
    index.add(vectors)
    _, found = index.search(vectors[4:5], 1)
    assert numbers[found[0, 0]] == vectors_of(arrow)[0][4]


@pytest.mark.parametrize("dtype", DTYPES)
def test_lance_is_a_table_of_lancedb(output: Path, dtype: str) -> None:
    run_job(output, dtype=dtype)
    written = convert(output, output.with_name("texts.lance"))
    table = lancedb.connect(output.parent).open_table("texts")
    expected = read_output(output)
    assert table.to_arrow().equals(expected)
    assert pa.types.is_fixed_size_list(table.schema.field("embedding").type)
    assert (written.rows, written.left_out) == (35, 0)
    assert written.size_bytes == sum(path.stat().st_size for path in output.with_name("texts.lance").rglob("*.*"))
    if dtype == "float32":
        rows, vectors = vectors_of(output)
        found = table.search(vectors[3], vector_column_name="embedding").metric("cosine").limit(1).to_list()
        assert [one["row"] for one in found] == [rows[3]]


def test_no_batch_is_larger_than_it_was(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than are read at once, over several row groups."""
    batches = [make_chunk(index, rows=1500)[0] for index in range(2)]
    schema = batches[0].schema
    inputs = {b"fastvec.inputs": b'[{"uri": "a.parquet", "first_row": 0, "rows": 3000}]'}
    write_batches(output, [one.replace_schema_metadata({**schema.metadata, **inputs}) for one in batches], nulls=3)
    monkeypatch.setattr(parquet_file, "GROUP_BYTES", 60_000)
    for suffix in SUFFIXES:
        convert(output, output.with_suffix(suffix))
    expected = read_output(output)
    assert pq.read_table(output.with_suffix(".parquet")).equals(expected)
    assert pq.ParquetFile(output.with_suffix(".parquet")).num_row_groups == 2
    assert lancedb.connect(output.parent).open_table("vecs").to_arrow().equals(expected)
    assert np.load(output.with_suffix(".npy")).shape == (2997, DIMS)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_existing_file_is_replaced_only_by_overwrite(arrow: Path, suffix: str) -> None:
    target = arrow.with_suffix(suffix)
    convert(arrow, target)
    with pytest.raises(RefusedError, match=re.escape(f"{target} exists: replace it with --overwrite, or choose")):
        convert(arrow, target)
    before = names(arrow.parent)
    assert convert(arrow, target, overwrite=True).rows in (26, 35)
    assert names(arrow.parent) == before


def test_row_numbers_of_something_else_are_kept(arrow: Path) -> None:
    numbers = arrow.with_name("vecs.rows.npy")
    numbers.write_text("mine")
    with pytest.raises(RefusedError, match=re.escape(f"{numbers} exists: ")):
        convert(arrow, arrow.with_suffix(".npy"))
    assert numbers.read_text() == "mine"
    assert not arrow.with_suffix(".npy").exists()


def test_a_folder_that_is_no_dataset_is_kept(arrow: Path) -> None:
    folder = arrow.with_suffix(".lance")
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=re.escape(f"{folder} is a folder, but not a Lance dataset: choose another")):
        convert(arrow, folder, overwrite=True)
    assert contents(folder) == {"mine.txt": b"mine"}


def test_what_cannot_be_converted_is_told_in_one_line(arrow: Path, tmp_path: Path) -> None:
    def problem(source: Path, target: Path) -> str:
        before = names(arrow.parent)
        with pytest.raises(OutputError) as refused:
            convert(source, target)
        assert names(arrow.parent) == before
        return str(refused.value)

    parquet = arrow.with_suffix(".parquet")
    assert problem(arrow, arrow.with_name("v.csv")).endswith(
        "v.csv ends in none of .parquet, .npy and .lance, the formats that can be written"
    )
    assert problem(arrow.with_name("no.arrow"), parquet).endswith("no.arrow cannot be read: No such file or directory")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    assert "is a Parquet file, but not an output of this" in problem(tmp_path / "other.parquet", parquet)
    assert problem(arrow, arrow.parent / "no" / "v.npy").endswith(
        "no is not a folder: create it, or choose another output"
    )
    content = bytearray(arrow.read_bytes())
    content[3000] ^= 1
    arrow.write_bytes(content)
    for suffix in SUFFIXES:
        assert re.search(
            r"vecs.arrow is damaged: batches: batch \d \(rows \d+ to \d+, bytes [\d,]+ to [\d,]+\) does not match",
            problem(arrow, arrow.with_suffix(suffix)),
        )


def test_an_address_is_no_local_file(arrow: Path) -> None:
    for source, target in ((arrow, "s3://bucket/v.npy"), ("s3://bucket/v.arrow", arrow.with_name("v.npy"))):
        with pytest.raises(
            UsageError, match=r"s3://bucket/v\.\w+ is an address, and this command reads and writes local files"
        ):
            convert(source, target)
    with pytest.raises(UsageError, match=r"s3://bucket/v\.arrow is an address"):
        merge([arrow, "s3://bucket/v.arrow"], arrow.with_name("all.arrow"))


def test_without_lancedb_its_extra_is_named(arrow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(OutputError, match=r"^Lance datasets need the package lancedb: pip install 'fastvec\[lance\]'$"):
        convert(arrow, arrow.with_suffix(".lance"))
    assert not arrow.with_suffix(".lance.tmp").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a conversion of the small output, and not of the large one."""
    mount_point = tmp_path / "small"
    mount_point.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", mount_point], capture_output=True)
    if mount.returncode != 0:
        pytest.skip("mounting a tmpfs needs root on Linux")
    yield mount_point
    subprocess.run(["umount", "--lazy", mount_point], check=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_what_was_there(arrow: Path, small_disk: Path, tmp_path: Path, suffix: str) -> None:
    large, target = tmp_path / "large.arrow", small_disk / f"v{suffix}"
    write_batches(large, [make_chunk(0, rows=8000)[0]], nulls=1)
    convert(arrow, target)
    before = {path.relative_to(small_disk): path.read_bytes() for path in small_disk.rglob("*.*") if path.is_file()}
    with pytest.raises(DiskFullError, match=re.escape(f"no space left for {target}: make room and run the same")):
        convert(large, target, overwrite=True)
    after = {path.relative_to(small_disk): path.read_bytes() for path in small_disk.rglob("*.*") if path.is_file()}
    assert after == before
    assert not any(path.name.endswith(".tmp") for path in small_disk.iterdir())


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
def test_killed_at_every_system_call(tmp_path: Path, suffix: str) -> None:
    """The final name is never that of half a file, and vectors are never beside another output's row numbers."""
    machine = Machine(tmp_path / "folder", tmp_path / "attic")
    old, new, target = tmp_path / "old.arrow", tmp_path / "new.arrow", machine.folder / f"v{suffix}"
    run_job(old, chunks=2)
    run_job(new, chunks=3)
    convert(new, target)
    expected = machine.files()
    machine.start_with(frozenset())
    convert(old, target)
    start = machine.files()

    def job() -> None:
        convert(new, target, overwrite=True)

    calls = len(machine.run(job))
    assert calls > 10
    for kill_at in range(calls):
        machine.start_with(start)
        machine.run(job, kill_at=kill_at)
        for files in (
            machine.files(),
            machine.after_power_cut("lost", "lost"),
            machine.after_power_cut("last", "lost"),
        ):
            left = {name: content for name, content in files if not name.endswith((".tmp", ".part"))}
            assert target.name not in left or left in (dict(start), dict(expected))
            machine.start_with(files)
            job()
            assert machine.files() == expected


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_sigkill_while_it_writes(arrow: Path, suffix: str) -> None:
    """What is left has another name, and the same command makes the file."""
    target = arrow.with_suffix(suffix)
    script = f"""
        import os, signal
        from fastvec import convert
        from fastvec.output.reader import Output
        stored = Output.stored_batches
        def killed(self, **options):
            for i, batch in enumerate(stored(self, **options)):
                if i == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batch
        Output.stored_batches = killed
        convert({str(arrow)!r}, {str(target)!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=environment(), check=False)
    assert done.returncode == -9
    assert not target.exists()
    assert target.with_name(target.name + ".tmp").exists()
    convert(arrow, target)
    assert not any(name.endswith(".tmp") for name in names(arrow.parent))


def test_two_at_once_are_refused(arrow: Path) -> None:
    target = arrow.with_suffix(".parquet")
    with replacing(target) as fd:
        os.write(fd, b"the other's")
        with pytest.raises(RefusedError, match=re.escape(f"{target}.tmp is locked by a running process")):
            convert(arrow, target)
    assert target.read_bytes() == b"the other's"
