"""The same rows, in every format, are the same texts; reading can begin at each of them."""

from pathlib import Path

import pyarrow as pa
import pytest

from fastvec.corpus.formats import delimited, lines
from fastvec.corpus.opening import open_corpus
from fastvec.errors import InputError
from tests.helpers.corpora import ALL, read_kept, read_texts, texts, write_parquet
from tests.helpers.formats import NAMES, write_as

WORDS = [
    "one",
    "",
    None,
    'she said "no"',
    "two\nlines",
    "a,b;c\td",
    "ünïcode 😀",
    " padded ",
    "007",
    *map(str, range(30)),
]
TABLE = pa.table({"id": [f"{row:03}" for row in range(len(WORDS))], "text": pa.array(WORDS, pa.string())})


@pytest.mark.parametrize("name", NAMES)
def test_every_format_has_the_same_rows(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "GROUP_LINES", 5)
    monkeypatch.setattr(lines, "BATCH_LINES", 3)

    corpus = open_corpus([write_as(name, tmp_path, TABLE)], column="text", keep=None)

    assert corpus.rows == len(WORDS)
    assert read_kept(corpus).to_pylist() == TABLE.to_pylist()
    for first in range(len(WORDS)):
        chunks = corpus.chunks(ALL, first_row=first, end_row=first + 7)
        assert [text for chunk in chunks for text in chunk.texts.to_pylist()] == WORDS[first : first + 7]


def test_a_text_is_a_line_of_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\nthree")
    assert open_corpus([tmp_path / "a.txt"]).columns == ("text",)
    assert read_kept(open_corpus([tmp_path / "a.txt"], keep="text")).to_pydict() == {"text": ["one", "", "three"]}


def test_files_of_different_formats_make_one_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "json"}\n')
    (tmp_path / "b.txt").write_text("line\n")
    parquet = write_parquet(tmp_path / "c.parquet", texts(["parquet"]))
    inputs = [parquet, tmp_path / "a.jsonl", tmp_path / "b.txt"]
    assert read_texts(*inputs) == ["parquet", "json", "line"]
    corpus = open_corpus(inputs)
    assert [place for _, place in corpus.locate([0, 1, 2])] == [{"row_group": 0}, {"line": 1}, {"line": 1}]


def test_a_record_may_be_larger_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "BLOCK_BYTES", (64, 4096))
    large = "x" * 1000
    (tmp_path / "a.csv").write_text("id,text\n" + f"1,{large}\n2,short\n" * 20)
    assert read_texts(tmp_path / "a.csv", column="text") == [large, "short"] * 20
    (tmp_path / "b.csv").write_text('id,text\n1,"not closed\n' + "2,short\n" * 2000)
    with pytest.raises(InputError, match=r"b\.csv: a record is longer than 4,096 bytes: is a quote not closed\?$"):
        open_corpus([tmp_path / "b.csv"], column="text")
