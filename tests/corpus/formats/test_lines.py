from pathlib import Path

import pytest

from fastvec.corpus.formats import lines
from fastvec.corpus.opening import open_corpus
from tests.helpers.corpora import ALL, read_texts


@pytest.mark.parametrize(
    "content", [b"", b"one", b"one\n", b"one\r\ntwo\n\nfour", b"a\nb\nc\nd\ne\nf\n", b"a\nb\nc\nd\n\xff"]
)
@pytest.mark.parametrize("group", [1, 2, 3, 100])
def test_lines_are_rows_wherever_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, group: int
) -> None:
    monkeypatch.setattr(lines, "GROUP_LINES", group)
    monkeypatch.setattr(lines, "BATCH_LINES", 2)
    monkeypatch.setattr(lines, "READ_BYTES", 3)
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    expected = [line.decode(errors="replace") for line in content.splitlines()]
    corpus = open_corpus([path])
    assert corpus.rows == len(expected)
    assert read_texts(path) == expected
    assert [end - begin for begin, end in corpus.groups] == [
        len(expected[i : i + group]) for i in range(0, len(expected), group)
    ]
    for first in range(len(expected)):
        chunks = corpus.chunks(ALL, first_row=first, end_row=first + 2)
        assert [text for chunk in chunks for text in chunk.texts.to_pylist()] == expected[first : first + 2]
