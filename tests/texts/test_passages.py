import functools
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvec import Encoder
from fastvec.errors import UsageError
from fastvec.texts import passages
from fastvec.texts.passages import passage_tokens, split
from fastvec.texts.tokenizer import TextTokenizer
from tests import ARTICLES
from tests.helpers.tiny import save_decoder

WIDE = "ﷺ "  # becomes 18 characters by Unicode's compatibility normalization, which take more tokens than a passage


@pytest.fixture(scope="module", params=["bundled", "llama"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    model = None if request.param == "bundled" else save_decoder(tmp_path_factory.mktemp("model"), "llama")
    return Encoder.from_pretrained(model, device="cpu", dtype="float32", max_length=64).tokenizer()


def cut(tokenizer: TextTokenizer, text: str, tokens: int, overlap: int = 0) -> list[str]:
    [spans] = split(tokenizer, [text], tokens=tokens, overlap=overlap)
    return [text[begin:end] for begin, end in spans.tolist()]


def test_passages_end_with_sentences_where_possible(tokenizer: TextTokenizer) -> None:
    sentences = [f"It is {n} now." for n in range(40)]
    for passage in cut(tokenizer, " ".join(sentences), 60)[:-1]:
        assert passage.startswith("It is")
        assert passage.endswith("now.")
    words = cut(tokenizer, " ".join(f"word{n}" for n in range(60)), 30)
    assert all(word.removeprefix("word").isdigit() for passage in words for word in passage.split())
    assert len(words) > 3


@pytest.mark.parametrize("segment", [1, 16])
@pytest.mark.parametrize(("size", "overlap"), [(None, 0), (None, 5), (24, 0), (24, 9)])
def test_all_of_real_texts_is_in_passages_that_fit(
    tokenizer: TextTokenizer, size: int | None, overlap: int, segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passages, "SEGMENT_PASSAGES", segment)
    texts = pq.read_table(ARTICLES)["text"].to_pylist()[:40]
    texts += ["", " \n", "short", "x" * 900, " " * 900, "word " * 400, "。".join("天地玄黃" * 40), "😀" * 200]
    texts += ["😀\n\n天地" * 60, WIDE * 40]
    tokens = passage_tokens(tokenizer, size, overlap)
    for text, spans in zip(texts, split(tokenizer, texts, tokens=tokens, overlap=overlap), strict=True):
        own = tokenizer([text[begin:end] for begin, end in spans.tolist()])
        assert not own.truncated.any() or text.isspace() or WIDE in text
        assert (spans[:, 0] < spans[:, 1]).all() or not text
        covered = set()
        for begin, end in spans.tolist():
            covered |= set(range(begin, end))
        assert all(text[i].isspace() for i in set(range(len(text))) - covered)
        assert (spans[1:, 0] > spans[:-1, 0]).all()
        if overlap == 0:
            assert (spans[1:, 0] >= spans[:-1, 1]).all()
        elif len(spans) > 1 and " " in text.strip() and WIDE not in text:
            assert (spans[1:, 0] <= spans[:-1, 1]).all()


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=400), st.integers(4, 40), st.integers(0, 5))
def test_any_text_is_covered(text: str, tokens: int, overlap: int) -> None:
    tokenizer = bundled_tokenizer()
    overlap = min(overlap, tokens // 2 - 1)
    [spans] = split(tokenizer, [text], tokens=tokens, overlap=overlap)
    covered = [False] * len(text)
    for begin, end in spans.tolist():
        assert 0 <= begin <= end <= len(text)
        covered[begin:end] = [True] * (end - begin)
    assert all(seen or character.isspace() for seen, character in zip(covered, text, strict=True))
    assert len(spans) >= 1


@functools.cache
def bundled_tokenizer() -> TextTokenizer:
    return Encoder.from_pretrained(None, device="cpu").tokenizer()


def test_a_text_that_fits_is_left_whole(tokenizer: TextTokenizer) -> None:
    text = " two words\n"
    assert cut(tokenizer, text, 10) == [text]
    assert cut(tokenizer, "", 10) == [""]


def test_sizes_that_do_not_fit_are_refused(tokenizer: TextTokenizer) -> None:
    room = tokenizer.room
    assert passage_tokens(tokenizer, None, 0) == room
    for size, overlap, message in [
        (room + 1, 0, f"passages of {room + 1} tokens do not fit: a sequence has room for 1 to {room}"),
        (0, 0, "passages of 0 tokens do not fit"),
        (10, 3, "an overlap of 3 tokens does not fit passages of 10: choose 0 to 2"),
        (10, -1, "an overlap of -1 tokens does not fit"),
    ]:
        with pytest.raises(UsageError, match=message):
            passage_tokens(tokenizer, size, overlap)


def test_instructions_take_room(tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(None, device="cpu", max_length=64)
    instructed = encoder.tokenizer("A long instruction of many words:")
    assert instructed.room < encoder.tokenizer().room - 5
    text = "one two three " * 100
    [spans] = split(instructed, [text], tokens=instructed.room, overlap=0)
    assert not instructed([text[begin:end] for begin, end in spans.tolist()]).truncated.any()
