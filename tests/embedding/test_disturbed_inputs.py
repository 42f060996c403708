"""Inputs that change or fail while a run reads them: no row of theirs becomes durable, and the command resumes."""

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastvec import Encoder, embed
from fastvec.corpus.reader import Chunk, Corpus
from fastvec.errors import InputError
from fastvec.report import Progress
from tests.helpers.corpora import texts, write_arrow, write_parquet

ROWS = 80


def write_lines(path: Path, table: pa.Table) -> Path:
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in table["text"].to_pylist()))
    return path


def write_compressed(path: Path, table: pa.Table) -> Path:
    with pa.CompressedOutputStream(str(path), "gzip") as file:
        file.write("".join(f'{{"text": "{text}"}}\n' for text in table["text"].to_pylist()).encode())
    return path


FORMATS: dict[str, Callable[[Path, pa.Table], Path]] = {
    "rows.arrow": write_arrow,
    "rows.parquet": write_parquet,
    "rows.jsonl": write_lines,
    "rows.jsonl.gz": write_compressed,
}


@pytest.fixture(autouse=True)
def many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two rows, each durable at once: more than are read ahead."""
    monkeypatch.setattr(Encoder, "chunk_limits", {"rows": 2, "bytes": 1 << 20})
    monkeypatch.setattr("fastvec.output.writer.GROUP_BYTES", 1)


@pytest.mark.parametrize("how", ["rewritten", "renamed"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_change_while_it_is_read_leaves_nothing_behind(
    encoder: Encoder, tmp_path: Path, output: Path, name: str, how: str
) -> None:
    """Of the same size. Once the old file is back, the same command resumes and makes the same bytes."""
    path = FORMATS[name](tmp_path / name, texts([f"old {number:03}" for number in range(ROWS)]))
    other = FORMATS[name](tmp_path / f"other.{name}", texts([f"new {number:03}" for number in range(ROWS)]))
    old, new, modified = path.read_bytes(), other.read_bytes(), path.stat().st_mtime_ns
    os.utime(other, ns=(modified + 1, modified + 1))
    embed([path], output, encoder=encoder)
    expected = output.read_bytes()
    output.unlink()

    def change(progress: Progress) -> None:
        if how == "renamed" and other.exists():
            os.replace(other, path)
        elif how == "rewritten" and path.read_bytes() == old:
            path.write_bytes(new)

    with pytest.raises(InputError, match=f"{name}: changed while it was being read; run the command again"):
        embed([path], output, encoder=encoder, progress=change)
    assert output.with_name("vecs.arrow.part").exists()
    path.write_bytes(old)
    os.utime(path, ns=(modified, modified))
    assert embed([path], output, encoder=encoder).resumed_rows > 0
    assert output.read_bytes() == expected


class FailingFile(io.BytesIO):
    """A file with a byte that cannot be read."""

    def __init__(self, path: Path, bad: int) -> None:
        super().__init__(path.read_bytes())
        self._bad = bad

    def read(self, size: int | None = -1) -> bytes:
        return self._sound(self.tell(), super().read(size))

    def readline(self, size: int | None = -1) -> bytes:
        return self._sound(self.tell(), super().readline(size))

    def _sound(self, begin: int, content: bytes) -> bytes:
        if begin <= self._bad < begin + len(content):
            self.seek(begin)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return content


@contextmanager
def bad_sector(at: int) -> Iterator[None]:
    """Let the inputs have a byte that cannot be read in this block, in all the ways that files are opened."""

    @contextmanager
    def as_native(file: Path, *, stream: bool) -> Iterator[pa.NativeFile]:
        with pa.PythonFile(FailingFile(file, at), mode="r") as native:
            yield native

    @contextmanager
    def opened(file: Path) -> Iterator[pq.ParquetFile]:
        with as_native(file, stream=False) as native, pq.ParquetFile(native, pre_buffer=False, buffer_size=256) as rows:
            yield rows

    def open_bytes(path: Path, compression: str | None) -> Any:
        if compression is None:
            return FailingFile(path, at)
        source = pa.PythonFile(FailingFile(path, at), mode="r")
        return io.BufferedReader(pa.CompressedInputStream(source, compression), 1 << 7)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastvec.corpus.formats.arrow.as_native", as_native)
        patch.setattr("fastvec.corpus.formats.parquet._opened", opened)
        for module in ("lines", "source"):
            patch.setattr(f"fastvec.corpus.formats.{module}.open_bytes", open_bytes)
        yield


@pytest.mark.parametrize("name", FORMATS)
def test_a_read_that_fails_is_one_line_and_the_command_resumes(
    encoder: Encoder, tmp_path: Path, output: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector anywhere: when the file is opened, before a row was embedded, and after rows are durable."""
    monkeypatch.setattr("fastvec.corpus.formats.lines.BATCH_LINES", 4)
    table = texts([f"text {number:03}" for number in range(ROWS)])
    options = {} if "jsonl" in name else {"group_rows": 4}
    path = FORMATS[name](tmp_path / name, table, **options)
    embed([path], output, encoder=encoder)
    expected, size = output.read_bytes(), path.stat().st_size
    output.unlink()
    message = rf"^\S*{name}:.* cannot be read: [^\n]*Input/output error[^\n]*$"
    chunks, places = Corpus.chunks, [size // 8, size // 5, size * 3 // 10]  # a footer comes after these

    def failing_chunks(self: Corpus, *arguments: Any, **options: Any) -> Iterator[Chunk]:
        with bad_sector(places[0]):
            yield from chunks(self, *arguments, **options)

    with bad_sector(0 if "jsonl" in name else size - 20), pytest.raises(InputError, match=message):
        embed([path], output, encoder=encoder)
    assert list(output.parent.glob("vecs*")) == []
    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "chunks", failing_chunks)
        while places:
            with pytest.raises(InputError, match=message):
                embed([path], output, encoder=encoder)
            places.pop(0)
    resumed = embed([path], output, encoder=encoder).resumed_rows
    assert resumed > 0 or name in ("rows.parquet", "rows.jsonl.gz")  # of which 64 KB are read at once
    assert output.read_bytes() == expected
