"""Splits long texts into passages of a limited number of tokens, at sentence ends where possible.

A passage is a range of characters, so that anybody can cut it out of the text; its vector is that of the text between.
A text is tokenized in segments of a few passages, so that memory does not grow with it.
"""

import re
from collections.abc import Generator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fastvec.errors import UsageError
from fastvec.texts.tokenized import IntArray
from fastvec.texts.tokenizer import TextTokenizer

Spans: TypeAlias = npt.NDArray[np.int64]  # [passages, 2] begin and end in characters

SEGMENT_PASSAGES = 16
CHARACTERS_PER_TOKEN = 5  # roughly
MOST_CHARACTERS = 10  # per token, of a text that is looked at whole
# a passage that is tokenized by itself may have a few tokens more than inside its text: at its first and last word
SEAM_TOKENS = 4
LONGEST_WORD = 32  # characters that an overlap is extended by, to begin with a word

# after a full stop and closing quotes, before white space; after one of Chinese or Japanese; at a line end
SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]*\s+|[。！？][」』”）]*\s*|\n+\s*")


def passage_tokens(tokenizer: TextTokenizer, size: int | None, overlap: int) -> int:
    """Return the number of a text's own tokens in a passage: `size`, or as many as fit into a sequence.

    Raises UsageError if a sequence has no room for `size`, or passages would overlap by almost half.
    """
    tokens = tokenizer.room if size is None else size
    if not 1 <= tokens <= tokenizer.room:
        raise UsageError(f"passages of {tokens} tokens do not fit: a sequence has room for 1 to {tokenizer.room}")
    most = max(_fitting(tokens) // 2 - 1, 0)
    if not 0 <= overlap <= most:
        raise UsageError(f"an overlap of {overlap} tokens does not fit passages of {tokens}: choose 0 to {most}")
    return tokens


def _fitting(tokens: int) -> int:
    """Return how many tokens of a text to put into a passage, which may have more when it is tokenized by itself."""
    return max(tokens - SEAM_TOKENS, (tokens + 1) // 2)


def split(tokenizer: TextTokenizer, texts: Sequence[str], *, tokens: int, overlap: int) -> list[Spans]:
    """Return the passages of each text, in order: at most `tokens` tokens long, `overlap` of them shared with the next.

    White space between passages belongs to none. A text that fits is one passage, as is one of white space alone.
    """
    short = [index for index, text in enumerate(texts) if len(text) <= MOST_CHARACTERS * tokens]
    counts = tokenizer.counts([texts[index] for index in short])
    fits = np.array([text.isspace() for text in texts])
    fits[short] |= counts <= tokens
    found: dict[int, Spans] = {}
    splitting: dict[int, Generator[str, IntArray, Spans]] = {}
    wanted: dict[int, str] = {}
    for index, text in enumerate(texts):
        if fits[index]:
            found[index] = np.array([[0, len(text)]])
        else:
            splitting[index] = _split(text, tokens, overlap)
            wanted[index] = next(splitting[index])
    while wanted:
        offsets = tokenizer.offsets(list(wanted.values()))
        for index, own in zip(list(wanted), offsets, strict=True):
            try:
                wanted[index] = splitting[index].send(own)
            except StopIteration as end:
                found[index] = end.value
                del wanted[index]
    return [found[index] for index in range(len(texts))]


def _split(text: str, tokens: int, overlap: int) -> Generator[str, IntArray, Spans]:
    """Return the passages of a text; yields the segments to tokenize, and is sent their tokens' offsets [t, 2]."""
    fitting = _fitting(tokens)
    spans: list[tuple[int, int]] = []
    begin, stop = _after_space(text, 0), len(text.rstrip())
    usual = size = SEGMENT_PASSAGES * tokens * CHARACTERS_PER_TOKEN
    while begin < stop:
        segment = text[begin : min(begin + size, stop)]
        offsets = yield segment
        whole = begin + len(segment) == stop
        if not whole:
            offsets = offsets[:-SEAM_TOKENS]  # the segment may end inside a word
        if len(offsets) <= (fitting if spans else tokens):
            if whole:
                spans.append((begin, stop) if spans else (0, len(text)))
                break
            size *= 2
            continue
        start = first = 0  # the next passage's first character and first token in the segment
        while start < len(segment) and len(offsets) - first > fitting:
            soonest = first + max(fitting // 4, overlap + 1)
            end = _sentence_end(segment, int(offsets[soonest, 1]), int(offsets[first + fitting - 1, 1]))
            end = max(end, start + 1)
            spans.append((begin + start, begin + len(segment[:end].rstrip())))
            starts = [end]
            if overlap:
                shared = int(offsets[max(int(np.searchsorted(offsets[:, 0], end)) - overlap, 0), 0])
                starts = [_word_begin(segment, shared), shared, end]
            start = next(place for place in (_after_space(segment, place) for place in starts) if place > start)
            first = max(int(np.searchsorted(offsets[:, 0], start)), first + 1)
        begin, size = _after_space(text, begin + start), usual
    return np.array(spans)


def _sentence_end(segment: str, soonest: int, latest: int) -> int:
    """Return where the last sentence ends between two characters, or else the last word, or else `latest`."""
    ends = [match.end() for match in SENTENCE_END.finditer(segment, soonest, latest)]
    if ends:
        return ends[-1]
    words = segment[soonest:latest].rsplit(None, 1)
    return latest - len(words[1]) if len(words) == 2 and not segment[latest - 1].isspace() else latest


def _word_begin(segment: str, character: int) -> int:
    """Return where the word begins that `character` is in, if it is a word of usual length."""
    for place in range(character, max(0, character - LONGEST_WORD), -1):
        if segment[place - 1].isspace():
            return place
    return character


def _after_space(segment: str, character: int) -> int:
    """Return the first character from here on that is no white space."""
    while character < len(segment) and segment[character].isspace():
        character += 1
    return character
