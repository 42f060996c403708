"""Tokenizes chunks of texts, in order. Texts of a chunk that are equal are tokenized once."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.corpus.reader import Chunk
from fastvec.errors import UsageError
from fastvec.system.pipeline import two_at_a_time
from fastvec.texts.tokenizer import TextTokenizer, TokenizedTexts

TOKENIZERS = 64  # for different instructions, kept at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedChunk:
    """The tokens of a chunk's distinct texts.

    `counts` covers all texts of the chunk: nulls, empty, truncated, repaired, duplicates; tokens are those to encode.
    """

    chunk: Chunk
    texts: TokenizedTexts  # [m], distinct
    places: npt.NDArray[np.intp]  # [n], where the vector of each of the chunk's texts is among [m]; -1: it has none
    failed: Mapping[int, str]  # the texts [n] that have no tokens, and an error code for each
    counts: Mapping[str, int]


def tokenize_chunks(
    chunks: Iterable[Chunk], tokenizer_for: Callable[[str | None], TextTokenizer], *, instructions: bool
) -> Iterator[TokenizedChunk]:
    """Tokenize chunks in order, by the tokenizer for the instruction of each text.

    While Python gathers the tokens of one chunk, the tokenizer works on another on all cores. Not so for chunks with
    `instructions`: making a tokenizer for another instruction changes settings that all of them share.
    """
    work = partial(tokenized, tokenizer_for=lru_cache(TOKENIZERS)(tokenizer_for))
    return map(work, chunks) if instructions else two_at_a_time(work, chunks)


def tokenized(chunk: Chunk, tokenizer_for: Callable[[str | None], TextTokenizer]) -> TokenizedChunk:
    """Tokenize the distinct texts of a chunk.

    An instruction that leaves no room for a text, in a chunk that has instructions, is an error of its rows.
    """
    texts = chunk.texts
    count = len(texts)
    rows = chunk.kept.num_rows
    places = np.full(count, -1, dtype=np.intp)
    failed = {int(place): "malformed_row" for place in np.flatnonzero(np.isin(np.arange(count) % rows, chunk.bad))}
    nulls = texts.null_count - len(failed)
    parts: list[TokenizedTexts] = []
    empty = np.zeros(0, dtype=np.bool_)
    for instruction, mask in _by_instruction(chunk):
        own = (texts if mask.all() else texts.filter(pa.array(mask))).dictionary_encode()
        distinct = own.dictionary.to_pylist()
        codes = own.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.intp)
        try:
            parts.append(tokenizer_for(instruction)(distinct))
        except UsageError:
            if chunk.instructions is None:
                raise
            failed |= dict.fromkeys(np.flatnonzero(mask)[codes >= 0].tolist(), "instruction_too_long")
            continue
        places[mask] = np.where(codes < 0, -1, codes + len(empty))
        empty = np.append(empty, [not text or text.isspace() for text in distinct])
    merged = TokenizedTexts.concatenated(parts) if parts else tokenizer_for(None)([])
    used = places[places >= 0]
    counts = {
        "nulls": nulls,
        "empty": int(empty[used].sum()),
        "truncated": int(merged.truncated[used].sum()),
        "repaired": chunk.repaired,
        "duplicates": len(used) - len(merged),
        "tokens": len(merged.ids),
    }
    return TokenizedChunk(chunk=chunk, texts=merged, places=places, failed=failed, counts=counts)


def _by_instruction(chunk: Chunk) -> Iterator[tuple[str | None, npt.NDArray[np.bool_]]]:
    """Yield each instruction of a chunk, and the texts [n] that it goes before; None is that of the job."""
    count = len(chunk.texts)
    if chunk.instructions is None:
        yield None, np.ones(count, dtype=np.bool_)
        return
    encoded = chunk.instructions.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    codes = np.tile(codes, count // len(codes))
    for code, instruction in enumerate([*encoded.dictionary.to_pylist(), None]):
        mask = codes == (-1 if instruction is None else code)
        if mask.any():
            yield instruction, mask
