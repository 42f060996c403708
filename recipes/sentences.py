"""Paragraphs to sentences, for the recipes."""

import re

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
LENGTHS = (30, 220)  # characters of a sentence to learn from


def sentences_of(paragraph: str) -> list[str]:
    """All sentences of a paragraph, of whatever length."""
    return [sentence.strip() for sentence in SENTENCE_END.split(paragraph)]


def within(text: str, lengths: tuple[int, int] = LENGTHS) -> bool:
    """Whether `text` has that many characters."""
    return lengths[0] <= len(text) <= lengths[1]
