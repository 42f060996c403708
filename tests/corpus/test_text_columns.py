"""How the text column is chosen, and text columns of other types: JSON, all null, a field of a struct."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fastvec.corpus.opening import open_corpus
from fastvec.errors import InputError
from tests.helpers.corpora import ALL, read_kept, read_texts, texts, write_arrow, write_parquet


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({"n": [1], "title": ["t"]}, "text column: title (the only string column)"),
        ({"title": ["t"], "body": ["b"]}, "text column: body (chosen by its name)"),
    ],
)
def test_the_column_that_was_taken_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, columns: dict[str, list[Any]], line: str
) -> None:
    path = write_parquet(tmp_path / "c.parquet", pa.table(columns))
    with caplog.at_level(logging.INFO, "fastvec"):
        open_corpus([path]).log_text_column()
        open_corpus([path], column=line.split()[2].removesuffix(",")).log_text_column()
    assert caplog.messages == [line]


def json_table() -> pa.Table:
    values = pa.array(['{"a": 1}', None, '"b"'])
    return pa.table({"text": pa.ExtensionArray.from_storage(pa.json_(), values), "id": pa.array([1, 2, 3])})


@pytest.mark.parametrize("write", [write_parquet, write_arrow])
def test_json_is_text_and_is_kept(tmp_path: Path, write: Callable[[Path, pa.Table], Path]) -> None:
    path = write(tmp_path / "corpus", json_table())
    assert read_texts(path) == ['{"a": 1}', None, '"b"']
    assert read_kept(open_corpus([path], keep=["text"]))["text"].to_pylist() == ['{"a": 1}', None, '"b"']


@pytest.mark.parametrize("write", [write_parquet, write_arrow])
def test_a_column_of_type_null_is_all_null(tmp_path: Path, write: Callable[[Path, pa.Table], Path]) -> None:
    nulls = write(tmp_path / "a", pa.table({"text": pa.nulls(2), "n": pa.nulls(2)}))
    words = write(tmp_path / "b", texts(["one", None]))
    assert read_texts(nulls) == [None, None]
    assert read_texts(nulls, words) == [None, None, "one", None]
    assert read_texts(words, nulls) == ["one", None, None, None]
    assert read_kept(open_corpus([nulls], keep=["n"]))["n"].to_pylist() == [None, None]


def test_json_is_not_taken_by_itself(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "c", json_table().rename_columns(["meta", "id"]))
    with pytest.raises(InputError, match="cannot tell which column is the text; give it with --column"):
        open_corpus([path])
    assert read_texts(path, column="meta") == ['{"a": 1}', None, '"b"']


def test_json_that_is_not_utf8_is_repaired_like_any_text(tmp_path: Path) -> None:
    storage = pa.array([b"b\xff", b"c"]).view(pa.string())
    path = write_arrow(tmp_path / "c", pa.table({"text": pa.ExtensionArray.from_storage(pa.json_(), storage)}))
    (chunk,) = open_corpus([path], keep=["text"]).chunks(ALL)
    assert (chunk.texts.to_pylist(), chunk.repaired) == (["b\ufffd", "c"], 1)
    assert chunk.kept["text"].to_pylist() == ["b\ufffd", "c"]


def test_a_null_column_takes_the_type_it_has_in_other_files(tmp_path: Path) -> None:
    nulls = write_parquet(tmp_path / "a", pa.table({"text": ["one"], "title": pa.nulls(1)}))
    words = write_parquet(tmp_path / "b", pa.table({"text": ["two"], "title": ["t"]}))
    for files, expected in (([nulls, words], [None, "t"]), ([words, nulls], ["t", None])):
        kept = read_kept(open_corpus(files, keep=["title"]))
        assert (kept["title"].to_pylist(), kept.schema.field("title").type) == (expected, pa.string())


def test_a_null_column_is_not_taken_beside_one_of_text(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "c", pa.table({"text": pa.nulls(1), "title": ["t"]}))
    with pytest.raises(InputError, match="column 'text' is null, not text; give another column with --column"):
        open_corpus([path])


def test_the_text_of_a_struct_is_pointed_at(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "c", pa.table({"n": [1], "doc": [{"m": 1, "a": "b"}]}))
    with pytest.raises(
        InputError, match=r"no top-level column contains text; give a struct field, e.g. --column doc\.a"
    ):
        open_corpus([path])


def test_fields_of_one_name_are_no_column(tmp_path: Path) -> None:
    twice = pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["t", "t"])
    with pytest.raises(InputError, match=r"there is no column 'doc\.t'"):
        open_corpus([write_arrow(tmp_path / "c", pa.table({"doc": twice}))], column="doc.t")


DOCUMENTS = [{"text": "one", "more": {"n": 1}}, None, {"text": None, "more": None}, {"text": "four", "more": {"n": 4}}]


@pytest.mark.parametrize("write", [write_parquet, write_arrow])
def test_fields_of_structs_are_columns(tmp_path: Path, write: Callable[..., Path]) -> None:
    table = pa.table({"id": pa.array([1, 2, 3, 4]), "doc": pa.array(DOCUMENTS)})
    path = write(tmp_path / "corpus", table, group_rows=3)
    corpus = open_corpus([path], column="doc.text", keep=["doc.more.n", "id"])
    assert corpus.columns[0] == "doc.text"
    chunks = list(corpus.chunks(ALL))
    assert [text for chunk in chunks for text in chunk.texts.to_pylist()] == ["one", None, None, "four"]
    assert read_kept(corpus).to_pydict() == {"doc.more.n": [1, None, None, 4], "id": [1, 2, 3, 4]}
    resumed = [text for chunk in corpus.chunks(ALL, first_row=3) for text in chunk.texts.to_pylist()]
    assert resumed == ["four"]
