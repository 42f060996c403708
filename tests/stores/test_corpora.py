"""Corpora in a store: each format gives the rows of the local file, and folders and patterns its files and order."""

import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastvec.corpus.locations import find_files
from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import ChunkLimits, Corpus
from fastvec.errors import InputError, UsageError
from fastvec.stores import store
from fastvec.stores.address import Address
from tests import ARTICLES
from tests.helpers.formats import NAMES, write_as

ROWS = pq.read_table(ARTICLES, columns=["title", "text"]).slice(0, 60)
LIMITS = ChunkLimits(rows=7, bytes=1 << 20)


def put(folder: Address, *names: str, content: bytes = b"") -> None:
    for name in names:
        assert store.create(folder / name, content)


def rows_of(corpus: Corpus, first_row: int = 0) -> list[tuple[list[str | None], pa.RecordBatch]]:
    return [(chunk.texts.to_pylist(), chunk.kept) for chunk in corpus.chunks(LIMITS, first_row=first_row)]


@pytest.mark.parametrize("name", [*NAMES, "a.txt"])
def test_each_format_gives_the_rows_of_the_local_file(folder: Address, tmp_path: Path, name: str) -> None:
    if name == "a.txt":
        local = tmp_path / name
        local.write_text("\n".join(" ".join(text.split()) for text in ROWS["text"].to_pylist()))
    else:
        local = write_as(name, tmp_path, ROWS)
    put(folder, name, content=local.read_bytes())
    keep = [] if name == "a.txt" else ["title"]
    remote = open_corpus([f"{folder}/{name}"], column="text", keep=keep)
    expected = open_corpus([local], column="text", keep=keep)
    assert rows_of(remote) == rows_of(expected)
    assert rows_of(remote, 28) == rows_of(expected, 28)
    assert list(remote.locate([0, 59])) == [(f"{folder}/{name}", place) for _, place in expected.locate([0, 59])]
    (file,) = remote.files
    assert (file.uri, file.size, file.rows) == (f"{folder}/{name}", local.stat().st_size, 60)
    assert file.version == store.find(folder / name).version != ""


TREE = ["a.parquet", "a-b/y.parquet", "a/z.parquet", "a/_hidden/q.parquet", ".hidden.parquet", "_x.parquet"]
TREE += ["b.arrow", "vecs.errors.jsonl", "README.md", "c[1].parquet", "deep/er/d.parquet"]


@pytest.mark.parametrize("pattern", ["", "*.parquet", "a*", "**/*.parquet", "**", "?/*", "a/*", "[!a]*.p*", "c[[]1].*"])
def test_folders_and_patterns_find_what_they_find_locally(folder: Address, tmp_path: Path, pattern: str) -> None:
    local = tmp_path / "tree"
    for name in TREE:
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).touch()
    put(folder, *TREE)
    expected = [path.relative_to(local).as_posix() for path in find_files([f"{local}/{pattern}"])]  # type: ignore[union-attr]
    assert [str(file).removeprefix(f"{folder}/") for file in find_files([f"{folder}/{pattern}"])] == expected


def test_what_a_folder_leaves_out_is_said(folder: Address, caplog: pytest.LogCaptureFixture) -> None:
    put(folder, "a.parquet", "_b.parquet", "c.feather")
    with caplog.at_level(logging.WARNING):
        assert len(find_files([str(folder)])) == 1
    assert f"{folder}: skipped 2 files or links, e.g. {folder}/_b.parquet" in caplog.text


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["missing"], "missing: no such file, folder or bucket"),
        (["*.csv"], r"\*\.csv: no file matches the pattern"),
        (["mixed"], "the folder contains 1 .* and 1 .* files; give a pattern"),
        (["none"], "none: the folder contains no data file"),
        (
            ["mixed/a.parquet", "mixed/*.parquet"],
            r"a\.parquet is the same file as the input .*a\.parquet; give it once",
        ),
    ],
)
def test_inputs_that_cannot_be_a_corpus_are_refused(folder: Address, inputs: list[str], message: str) -> None:
    put(folder, "mixed/a.parquet", "mixed/b.csv", "none/readme")
    with pytest.raises((InputError, UsageError), match=message):
        find_files([f"{folder}/{one}" for one in inputs])


def test_a_pattern_needs_a_bucket() -> None:
    with pytest.raises(UsageError, match="a pattern needs a bucket before it"):
        find_files(["s3://buck*/a.parquet"])


def test_an_output_among_the_inputs(folder: Address) -> None:
    put(folder, "in/a.parquet", "in/vecs.arrow", "in/vecs.errors.jsonl")
    output = folder / "in/vecs.arrow"
    with pytest.raises(UsageError, match="the output is inside the input folder"):
        find_files([f"{folder}/in"], output=output)
    with pytest.raises(UsageError, match="is both an input and the output"):
        find_files([str(output)], output=output)
    assert [file.name for file in find_files([f"{folder}/in/*"], output=output)] == ["a.parquet"]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.arrow"])
def test_a_file_that_changes_while_it_is_read_is_noticed(folder: Address, tmp_path: Path, name: str) -> None:
    put(folder, name, content=write_as(name, tmp_path, ROWS).read_bytes())
    corpus = open_corpus([f"{folder}/{name}"], column="text")
    chunks = corpus.chunks(LIMITS)
    next(chunks)
    store.remove(folder / name)
    put(folder, name, content=write_as(name, tmp_path, ROWS.slice(0, 59)).read_bytes())
    with pytest.raises(InputError, match="changed while it was being read; run the command again"):
        list(chunks)
    with pytest.raises(InputError, match="changed while it was being read; run the command again"):
        list(corpus.chunks(LIMITS))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", lambda whole: whole[:-10], r"no footer at its end \(\d+ bytes\)"),
        ("a.parquet", lambda whole: b"", "the file is empty"),
        ("a.arrow", lambda whole: whole[:-10], "no footer at its end"),
        ("a.stream", lambda whole: whole[:-10], "the Arrow stream has no end marker"),
        ("a.parquet", lambda whole: b"<html>", "neither Parquet nor Arrow, despite its suffix"),
    ],
)
def test_a_damaged_file_is_one_line(
    folder: Address, tmp_path: Path, name: str, content: Callable[[bytes], bytes], message: str
) -> None:
    put(folder, name, content=content(write_as(name, tmp_path, ROWS).read_bytes()))
    with pytest.raises(InputError, match=f"^{folder}/{name}: {message}"):
        open_corpus([f"{folder}/{name}"])
