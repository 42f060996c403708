import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvec.corpus.formats import lines
from fastvec.corpus.opening import open_corpus
from fastvec.errors import InputError
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


@given(
    content=st.lists(st.sampled_from([b"a", b"{", b" ", b"\t", b"\r", b"\n", b"\n\n", b"\xef\xbb\xbf"])).map(b"".join),
    skip_blank=st.booleans(),
    block=st.integers(1, 9),
    group=st.integers(1, 4),
)
def test_lines_are_counted_in_blocks_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, skip_blank: bool, block: int, group: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "READ_BYTES", block)
        patch.setattr(lines, "GROUP_LINES", group)
        found = lines.LineFile.open(path, None, skip_blank=skip_blank)
    expected, offset = [], 0
    for number, line in enumerate(split(content), 1):
        if not (skip_blank and line.isspace()):
            expected.append((offset, number))
        offset += len(line)
    starts = [(0, 1), *expected[group::group]][: -(-len(expected) // group)]
    assert [(one.offset, one.line) for one in found.groups] == starts
    assert found.group_rows == tuple(len(expected[i : i + group]) for i in range(0, len(expected), group))
    assert found.lines == len(split(content))


def split(content: bytes) -> list[bytes]:
    """Return the lines with their ends, which are line feeds alone."""
    return [line for line in re.split(rb"(?<=\n)", content) if line]


def test_a_line_that_is_too_long_is_named_though_blocks_are_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "READ_BYTES", 4)
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 9)
    for content, number in ((b"ab\n123456789\ncd\n", 2), (b"123456789012", 1), (b"a\nb\n\n1234567890", 4)):
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(InputError, match=f"line {number} is longer than 9 bytes"):
            open_corpus([tmp_path / "a.txt"])
    (tmp_path / "a.txt").write_bytes(b"12345678\n12345678")
    assert open_corpus([tmp_path / "a.txt"]).rows == 2
