"""Split paragraphs into sentences, for the recipes."""

import re

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
LENGTHS = (30, 220)  # minimum and maximum characters of a training sentence


def sentences_of(paragraph: str) -> list[str]:
    """Return all sentences of a paragraph, of any length."""
    return [sentence.strip() for sentence in SENTENCE_END.split(paragraph)]


def within(text: str, lengths: tuple[int, int] = LENGTHS) -> bool:
    """Return whether the number of characters in `text` is within `lengths`, both ends included."""
    return lengths[0] <= len(text) <= lengths[1]
