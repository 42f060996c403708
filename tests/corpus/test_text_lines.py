from pathlib import Path

import pytest

from fastvec.corpus import text_lines
from fastvec.corpus.reader import open_corpus
from fastvec.errors import InputError
from tests.helpers.corpora import ALL, read_texts


@pytest.mark.parametrize(
    "content", [b"", b"one", b"one\n", b"one\r\ntwo\n\nfour", b"a\nb\nc\nd\ne\nf\n", b"a\nb\nc\nd\n\xff"]
)
@pytest.mark.parametrize("group", [1, 2, 3, 100])
def test_lines_are_rows_wherever_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, group: int
) -> None:
    monkeypatch.setattr(text_lines, "GROUP_LINES", group)
    monkeypatch.setattr(text_lines, "BATCH_LINES", 2)
    monkeypatch.setattr(text_lines, "READ_BYTES", 3)
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    expected = [line.decode(errors="replace") for line in content.splitlines()]
    corpus = open_corpus([path], lines=True)
    assert corpus.rows == len(expected)
    assert read_texts(path, lines=True) == expected
    assert [end - begin for begin, end in corpus.groups] == [
        len(expected[i : i + group]) for i in range(0, len(expected), group)
    ]
    for first in range(len(expected)):
        chunks = corpus.chunks(ALL, first_row=first, end_row=first + 2)
        assert [text for chunk in chunks for text in chunk.texts.to_pylist()] == expected[first : first + 2]


def test_embedding_reads_no_text_files(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("one\ntwo\n")
    with pytest.raises(InputError, match=r"notes.txt: neither Parquet nor an Arrow file"):
        open_corpus([path])
