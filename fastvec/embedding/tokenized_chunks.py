"""Chunks of texts, tokenised: two at a time, and in order."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fastvec.corpus.reader import Chunk
from fastvec.texts.tokenizer import TextTokenizer, TokenizedTexts

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedChunk:
    """The tokens of a chunk's texts; `counts` are of its rows."""

    chunk: Chunk
    valid: npt.NDArray[np.bool_]  # [rows] where the text is not null
    texts: TokenizedTexts  # of the valid rows
    counts: Mapping[str, int]


def tokenize_chunks(chunks: Iterable[Chunk], tokenizer: TextTokenizer) -> Iterator[TokenizedChunk]:
    """Two chunks at a time, in order: one's tokens are gathered in Python while the other's are found on all cores."""
    with ThreadPoolExecutor(2) as pool:
        futures = (pool.submit(_tokenized, chunk, tokenizer) for chunk in chunks)
        for future in behind(futures, by=1):
            yield future.result()


def behind(items: Iterable[Item], *, by: int) -> Iterator[Item]:
    """The same items, each given on once `by` more were taken."""
    taken: deque[Item] = deque()
    for item in items:
        taken.append(item)
        if len(taken) > by:
            yield taken.popleft()
    yield from taken


def _tokenized(chunk: Chunk, tokenizer: TextTokenizer) -> TokenizedChunk:
    valid = chunk.texts.is_valid().to_numpy(zero_copy_only=False)
    texts = chunk.texts.drop_null().to_pylist()
    tokenized = tokenizer(texts)
    counts = {
        "nulls": chunk.texts.null_count,
        "empty": sum(not text or text.isspace() for text in texts),
        "truncated": tokenized.truncated,
        "repaired": chunk.repaired,
        "tokens": len(tokenized.ids),
    }
    return TokenizedChunk(chunk=chunk, valid=valid, texts=tokenized, counts=counts)
