"""Tokenizes chunks of texts, two at a time and in order."""

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
    """The tokens of a chunk's texts. `counts` covers the chunk's rows: nulls, empty, truncated, repaired, tokens."""

    chunk: Chunk
    valid: npt.NDArray[np.bool_]  # [rows], whether the text is not null
    texts: TokenizedTexts  # of the valid rows
    counts: Mapping[str, int]


def tokenize_chunks(chunks: Iterable[Chunk], tokenizer: TextTokenizer) -> Iterator[TokenizedChunk]:
    """Tokenize two chunks at a time, in order.

    While Python gathers the tokens of one chunk, the tokenizer works on the other on all cores.
    """
    with ThreadPoolExecutor(2) as pool:
        futures = (pool.submit(_tokenized, chunk, tokenizer) for chunk in chunks)
        for future in delayed(futures, by=1):
            yield future.result()


def delayed(items: Iterable[Item], *, by: int) -> Iterator[Item]:
    """Yield the same items in order, each one after `by` more have been taken from `items`."""
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
