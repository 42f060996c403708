"""Names and bytes that nobody expects: in errors, in CSV, in text files, in types of columns."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from fastvec.cli import streams
from fastvec.corpus.opening import open_corpus
from fastvec.errors import InputError
from tests.helpers.corpora import ALL, read, read_texts, write_arrow, write_parquet

ESCAPES = "red\x1b[31m\nsecond line\u202e\u2028"
SHOWN = r"red\x1b[31m\nsecond line\u202e\u2028"


@pytest.mark.parametrize("write", [write_parquet, write_arrow])
def test_a_name_does_not_reach_the_terminal_as_it_is(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(tmp_path / f"{ESCAPES}.data", pa.table({ESCAPES: [1], "other": ["a"], "third": ["b"]}))

    with pytest.raises(InputError) as refused:
        open_corpus([path])

    assert str(refused.value).startswith(f"{tmp_path}/{SHOWN}.data: cannot tell which column is the text")
    assert f"Its columns: {SHOWN} (int64)" in str(refused.value)


def test_messages_and_log_lines_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    streams.say(f"first \x1b[2J\n{os.fsdecode(b'name-' + bytes([0xFF]))} 日本語 é")
    assert capsys.readouterr().err == "first \\x1b[2J\nname-\\udcff 日本語 é\n"


def test_long_names_are_cut(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "c.arrow", pa.table({f"{n}" + "x" * 100_000: ["a"] for n in range(30)}))
    with pytest.raises(InputError) as refused:
        open_corpus([path])
    assert len(str(refused.value)) < 2000


@pytest.mark.parametrize(
    ("type", "shown"),
    [
        (pa.binary(2), "fixed_size_binary[2]"),
        (pa.list_(pa.string()), "list<item: string>"),
        (pa.map_(pa.string(), pa.string()), "map<string, string>"),
        (pa.struct([("a", pa.string())]), "struct<a: string>"),
        (pa.run_end_encoded(pa.int32(), pa.string()), "run_end_encoded<run_ends: int32, values: string>"),
        (pa.list_view(pa.string()), "list_view<item: string>"),
    ],
    ids=str,
)
def test_a_column_that_holds_no_text_is_named_with_its_type(tmp_path: Path, type: pa.DataType, shown: str) -> None:
    path = write_arrow(tmp_path / "c.arrow", pa.table({"text": pa.array([None], type)}))
    with pytest.raises(InputError) as refused:
        open_corpus([path], column="text")
    assert str(refused.value).startswith(f"{path}: column 'text' is {shown}, not text.")


@pytest.mark.parametrize("name", ["c.csv", "c.csv.gz"])
def test_a_bad_record_of_other_bytes_is_a_bad_row(tmp_path: Path, name: str) -> None:
    """pyarrow reports a bad record as a string. The bytes of the other rows are repaired, as in a file without it."""
    latin = "3,naïve\n4,naïve,more\n".encode("latin-1")
    content = b'\xef\xbb\xbfid,t\xc3\xa9xt\n1,\xf0\x9f\x98\x80\n2,"two\nlines"\n' + latin + b"5,\n6\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)

    (chunk,) = read(path, column="téxt", keep=None)

    assert chunk.texts.to_pylist() == ["😀", "two\nlines", "na\ufffdve", None, None, None]
    assert chunk.kept["id"].to_pylist() == ["1", "2", "3", None, "5", None]
    assert (chunk.bad.tolist(), chunk.repaired) == ([3, 5], 1)
    (rest,) = open_corpus([path], column="téxt").chunks(ALL, first_row=3)
    assert rest.bad.tolist() == [0, 2]


def test_a_column_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_bytes("id,naïve\n1,a\n".encode("latin-1"))
    with pytest.raises(InputError) as refused:
        open_corpus([path])
    assert str(refused.value) == f"{path}: a column name is not UTF-8; convert the file with iconv"


def test_invalid_utf8_in_a_text_file_is_repaired_where_it_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes(b"fine\nbad \xff byte\n")
    (chunk,) = read(path, keep=None)
    assert chunk.kept["text"].to_pylist() == chunk.texts.to_pylist() == ["fine", "bad \ufffd byte"]
    assert chunk.repaired == 1


def test_a_row_above_the_largest_chunk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_arrow(tmp_path / "c.arrow", pa.table({"text": ["a", "b", "c" * 5000]}), group_rows=2)
    monkeypatch.setattr("fastvec.corpus.reader.MAX_CHUNK_BYTES", 4999)
    with pytest.raises(InputError) as refused:
        read(path, limits=ALL)
    assert str(refused.value) == (
        f"{path}: row 2 of the corpus, in row group 1, has 5,000 bytes of text and kept columns, more than 4,999; "
        "split it, or keep fewer columns"
    )


def test_a_dictionary_of_nulls_is_kept(tmp_path: Path) -> None:
    """pyarrow ends the process when it is asked which of its values are valid."""
    nulls = pa.DictionaryArray.from_arrays(pa.array([0, None]), pa.nulls(1))
    path = write_arrow(tmp_path / "c.arrow", pa.table({"text": ["a", "b"], "kind": nulls}))
    (chunk,) = read(path, keep=None)
    assert chunk.kept["kind"].to_pylist() == [None, None]


def test_many_columns_are_read(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(2000)]
    path = write_parquet(tmp_path / "c.parquet", pa.table({"text": ["a", "b"], **{name: [1, 2] for name in names}}))
    assert read_texts(path, keep=None) == ["a", "b"]


def test_a_file_without_rows_or_row_groups_is_read(tmp_path: Path) -> None:
    empty = pa.table({"text": pa.array([], pa.string())})
    paths = [write_parquet(tmp_path / "a.parquet", empty), write_arrow(tmp_path / "b.arrow", empty)]
    assert open_corpus(paths).rows == 0
    assert read(*paths) == []
