"""Encodes an iterator of texts or batches: one result for each item, in order, with a bounded look-ahead.

Small items share a chunk and large items are cut, so that a chunk is as large as `ChunkEncoder.chunk_limits` says,
whatever the items are. The next chunks are read and tokenized in another thread while one is encoded.

The iterator is read by three chunks beyond the one whose results are taken: one being tokenized, one that waits for a
place in the queue, and one in the queue. On a GPU, where encoding has a thread too, there are three more: one being
computed, one that waits, and one in the queue.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fastvec.corpus.reader import MEMORY_BYTES
from fastvec.encoding.chunk_encoder import ChunkEncoder, Encoded, without_vector
from fastvec.encoding.stream_items import Item, ItemReader
from fastvec.errors import UsageError
from fastvec.system.pipeline import Pipeline, delayed, two_at_a_time
from fastvec.texts.tokenized import TokenizedTexts
from fastvec.texts.tokenizer import TextTokenizer, without_surrogates

FloatArray = npt.NDArray[np.float32]

QUEUED = 1  # chunks in the queue between two stages


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """The next `rows` texts of an item; `last` says that the item ends with them."""

    item: Item
    rows: int
    last: bool


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Consecutive texts and the pieces of items that they are."""

    texts: list[str] = field(default_factory=list)
    pieces: list[_Piece] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tokenized:
    pieces: list[_Piece]
    texts: TokenizedTexts
    characters: int


def source_items(source: Any) -> Iterator[Any]:
    """Return the items of `source`; raises UsageError for what is not a stream of items, such as a table or a text."""
    if isinstance(source, (str, bytes, Mapping)) or hasattr(source, "columns") or not isinstance(source, Iterable):
        raise UsageError(
            "stream takes an iterator of texts, of batches of texts or of record batches, got a value of type "
            f"{type(source).__name__}: put it in a list, or give a table's to_batches()"
        )
    return iter(source)


def encode_stream(
    encoder: ChunkEncoder, items: Iterator[Any], tokenizer: TextTokenizer, read: ItemReader
) -> Generator[Any, None, None]:
    """Yield the result of each item. Closing the generator ends its threads, then closes the source of the items.

    An exception of the source or of the model is raised after the results of the items before it.
    """
    try:
        with Pipeline() as pipeline:
            chunks = _chunks(map(read, items), encoder.chunk_limits)
            tokenized = two_at_a_time(partial(_tokenize, tokenizer), chunks)
            tokenized = pipeline.run_ahead("tokenize", tokenized, feeds="encode", depth=QUEUED)
            encoded = _encode(encoder, tokenized, pipeline.check)
            if encoder.chunks_ahead:  # on a CPU, encoding is slower in a thread other than the caller's: see the job
                encoded = pipeline.run_ahead("encode", encoded, feeds="yield", depth=QUEUED)
            yield from _results(encoded)
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()


def _chunks(items: Iterator[Item], limits: dict[str, int]) -> Iterator[_Chunk]:
    """Cut the texts of `items` into chunks; before an exception of `items`, yield what was read."""
    rows, most, row_bytes = limits["rows"], limits["bytes"], limits["row_bytes"]
    chunk, size = _Chunk(), 0
    failure: Exception | None = None
    try:
        for item in items:
            begin = len(chunk.texts)
            for text in item.take_texts():
                # in characters; a long text is truncated before it is encoded, but is in memory
                added = max(min(len(text), row_bytes), len(text) * most // MEMORY_BYTES)
                if chunk.texts and (len(chunk.texts) == rows or size + added > most):
                    chunk.pieces.append(_Piece(item=item, rows=len(chunk.texts) - begin, last=False))
                    yield chunk
                    chunk, size, begin = _Chunk(), 0, 0
                chunk.texts.append(text)
                size += added
            chunk.pieces.append(_Piece(item=item, rows=len(chunk.texts) - begin, last=True))
            size += item.nbytes * most // MEMORY_BYTES
            if size >= most or max(len(chunk.texts), len(chunk.pieces)) >= rows:
                yield chunk
                chunk, size = _Chunk(), 0
    except Exception as error:  # raised again below, after the items before it
        failure = error
    if chunk.pieces or chunk.texts:
        yield chunk
    if failure is not None:
        raise failure


def _tokenize(tokenizer: TextTokenizer, chunk: _Chunk) -> _Tokenized:
    texts = tokenizer([without_surrogates(text) for text in chunk.texts])
    return _Tokenized(pieces=chunk.pieces, texts=texts, characters=sum(map(len, chunk.texts)))


def _encode(
    encoder: ChunkEncoder, chunks: Iterator[_Tokenized], check: Callable[[], None]
) -> Iterator[tuple[list[_Piece], Encoded]]:
    def begun() -> Iterator[tuple[_Tokenized, Any]]:
        characters = 0
        for chunk in chunks:
            characters += chunk.characters
            encoder.measure_for(characters)  # once the stream turns out to be long
            yield chunk, encoder.begin(chunk.texts, check)

    for chunk, submitted in delayed(begun(), by=encoder.chunks_ahead):
        yield chunk.pieces, encoder.finish(submitted)


def _results(chunks: Iterator[tuple[list[_Piece], Encoded]]) -> Iterator[Any]:
    """Join the pieces of each item; raises ModelError for a text without a vector when its item's turn comes."""
    parts: list[FloatArray] = []  # of the item that is not complete
    for pieces, encoded in chunks:
        begin = 0
        for piece in pieces:
            end = begin + piece.rows
            failed = min((row for row in encoded.failed if begin <= row < end), default=None)
            if failed is not None:
                row = sum(map(len, parts)) + failed - begin
                raise without_vector(piece.item.name_of(row), encoded.failed[failed])
            parts.append(encoded.vectors[begin:end])
            if piece.last:
                # copied, so that one vector that the caller keeps does not keep its whole chunk
                yield piece.item.result(np.concatenate(parts))
                parts.clear()
            begin = end
