"""A line or record that cannot be read is a row without values; it shifts no other row."""

from pathlib import Path

import pytest

from fastvec.corpus.formats import delimited, lines
from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import Corpus
from fastvec.errors import InputError
from tests.helpers.corpora import ALL


def rows(corpus: Corpus, first_row: int = 0) -> tuple[list[str | None], list[int]]:
    """Return the texts from `first_row` on, and the rows among them that could not be read."""
    chunks = list(corpus.chunks(ALL, first_row=first_row))
    texts = [text for chunk in chunks for text in chunk.texts.to_pylist()]
    return texts, [chunk.first_row + int(row) for chunk in chunks for row in chunk.bad]


BAD_LINES = [
    b'{"text": "cut',
    b'{"text": [7]}',
    b'["text"]',
    b"text",
    b"{}}",
    b'{"text": "two"} {"text": "objects"}',
    b'{"text": {"a": "struct"}}',
    b'{"text": "a" "b"}',
    b'{"text": "control \x01 character"}',
    b"\xff\xfe",
    b"}{",
]


@pytest.mark.parametrize("bad", BAD_LINES)
@pytest.mark.parametrize("batch", [1, 2, 1024])
def test_a_bad_line_of_json_is_a_bad_row(
    tmp_path: Path, bad: bytes, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "BATCH_LINES", batch)
    monkeypatch.setattr(lines, "GROUP_LINES", 2)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n%b\n{"text": "c"}\n{"text": null}\n{"other": 1}\n%b' % (bad, bad))

    corpus = open_corpus([path], column="text")

    assert rows(corpus) == (["a", None, "c", None, None, None], [1, 5])
    assert rows(corpus, 2) == (["c", None, None, None], [5])
    assert [place for _, place in corpus.locate([0, 1, 1, 2, 5])] == [{"line": n} for n in (1, 3, 3, 4, 7)]


def test_an_object_across_lines_and_two_objects_in_a_line_shift_nothing(tmp_path: Path) -> None:
    """Together they have as many objects as lines."""
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "a"}\n{"text":\n"across"}\n{"text": "b"}{"text": "c"}\n{"text": "d"}{"text": "e"}\n{"text": "f"}'
    )
    assert rows(open_corpus([path])) == (["a", None, None, None, None, "f"], [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("line", "text", "repaired"),
    [
        (b'{"text": "lone \\ud800 surrogate"}', "lone \ufffd\ufffd\ufffd surrogate", 1),
        (b'{"text": "invalid \xff byte"}', "invalid \ufffd byte", 1),
        (b'{"text": "x", "score": NaN}', "x", 0),
        (b'{"text": "x", "score": 1e999}', "x", 0),
        (b'{"text": "first", "text": "second"}', "second", 0),
        (b'{"text": "nul \\u0000"}', "nul \0", 0),
        (b'{"text": -7.50e3, "n": 1}', "-7.50e3", 0),
        (b'{"text": true}', "true", 0),
        (b'{"text": "x", "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "x", 0),
    ],
)
def test_what_other_writers_of_json_write_is_read(tmp_path: Path, line: bytes, text: str, repaired: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line)
    (chunk,) = open_corpus([path], column="text").chunks(ALL)
    assert (chunk.texts.to_pylist(), chunk.repaired, len(chunk.bad)) == (["a", text], repaired, 0)


def test_fields_of_structs_and_of_few_lines_are_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"meta": {"title": "a"}, "id": 1, "when": "2020-01-01"}\n' * 2000
        + '{"meta": {"lang": "en"}, "id": 1.5}\n{"meta": "none", "id": "x", "rare": "r"}\n'
    )
    corpus = open_corpus([path], column="meta.title", keep=["rare", "when", "id"])
    assert [str(field.type) for field in corpus.kept_schema] == ["string", "string", "string"]
    (chunk,) = corpus.chunks(ALL)
    assert chunk.texts.to_pylist() == ["a"] * 2000 + [None, None]
    assert chunk.kept.slice(1999).to_pylist() == [
        {"rare": None, "when": "2020-01-01", "id": "1"},
        {"rare": None, "when": None, "id": "1.5"},
        {"rare": None, "when": None, "id": None},  # it has no struct `meta`
    ]
    assert chunk.bad.tolist() == [2001]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1,\n2]", "a JSON array, not one object per line"),
        ('{\n"text": "a"\n}\n', "the first lines are not one JSON object each"),
        ("hello\n", "no JSON object in the first lines (the first begins with b'hello')"),
        ("\n \n", "no line has an object"),
        ("{}\n", "no JSON object in the first lines"),
    ],
)
def test_a_file_without_json_lines_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InputError) as refused:
        open_corpus([tmp_path / "a.jsonl"])
    assert str(refused.value).startswith(f"{tmp_path}/a.jsonl: {message}")


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 99)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + "x" * 100)
    with pytest.raises(InputError, match=r"a\.jsonl: line 2 is longer than 99 bytes; expected one text or object per"):
        open_corpus([tmp_path / "a.jsonl"])


@pytest.mark.parametrize("block", [32, 4096])
def test_a_record_with_other_fields_is_a_bad_row(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every position: also the first and the last of the file and of a block, and several one after another."""
    monkeypatch.setattr(delimited, "BLOCK_BYTES", (block,))
    path = tmp_path / "a.csv"
    for bad in ({0}, {1}, {9}, {0, 1}, {8, 9}, {3, 4, 5}, {0, 2, 4, 6, 8}, set(range(1, 10)), set(range(10))):
        records = [f"{row},one,two" if row in bad else f'{row},"text\n{row}"' for row in range(10)]
        path.write_text("\n".join(["id,text", *records]))

        corpus = open_corpus([path], column="text")

        expected = [None if row in bad else f"text\n{row}" for row in range(10)]
        assert rows(corpus) == (expected, sorted(bad))
        assert rows(corpus, 4) == (expected[4:], [row for row in sorted(bad) if row >= 4])
        assert [place for _, place in corpus.locate([0, 9])] == [{"record": 2}, {"record": 11}]


def test_quotes_that_are_not_closed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,a\n2,"open\n3,b\n')
    with pytest.raises(InputError, match=r"a\.csv: the quotes that begin in its last record, 3, are not closed"):
        open_corpus([path], column="text")
    path.write_text('id,text\n1,a\n2,"closed\n"')
    assert rows(open_corpus([path], column="text")) == (["a", "closed\n"], [])


def test_quotes_in_tsv_are_text_unless_they_enclose_fields(tmp_path: Path) -> None:
    (tmp_path / "raw.tsv").write_text('id\ttext\n1\t"quoted" and more\n2\t"open\n')
    (tmp_path / "csv.tsv").write_text('id\ttext\n1\t"a ""b"""\n2\t"two\nlines"\n')
    assert rows(open_corpus([tmp_path / "raw.tsv"], column="text"))[0] == ['"quoted" and more', '"open']
    assert rows(open_corpus([tmp_path / "csv.tsv"], column="text"))[0] == ['a "b"', "two\nlines"]


def test_a_blank_line_of_a_single_column_is_a_null_and_of_several_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text\nx\n\ny\n")
    (tmp_path / "two.csv").write_text("\nid;text\n1;x\n\n2;y\n")
    assert rows(open_corpus([tmp_path / "one.csv"])) == (["x", None, "y"], [])
    assert rows(open_corpus([tmp_path / "two.csv"], column="text")) == (["x", "y"], [])


def test_a_long_field_and_a_late_quote_do_not_change_how_tsv_is_read(tmp_path: Path) -> None:
    long = "x" * 200_000
    (tmp_path / "long.tsv").write_text(f'id\ttext\n1\t"{long}"\n2\t"two\nlines"\n')
    assert rows(open_corpus([tmp_path / "long.tsv"], column="text")) == ([long, "two\nlines"], [])
    (tmp_path / "late.tsv").write_text("id\ttext\n" + "1\tplain\n" * 3000 + '2\t"open\n3\tend\n')
    assert rows(open_corpus([tmp_path / "late.tsv"], column="text")) == (["plain"] * 3000 + ['"open', "end"], [])


def test_deep_nesting_in_the_first_lines_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for depth in (100, 300, 1_000, 4_000):
        path.write_bytes(b'{"text": "a", "deep": ' + b"[" * depth + b"]" * depth + b'}\n{"text": "[[[["}\n')
        assert rows(open_corpus([path], column="text")) == (["a", "[[[["], [])
