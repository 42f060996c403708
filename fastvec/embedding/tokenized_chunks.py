"""Tokenizes chunks of texts, in order. Equal texts of a chunk are tokenized once, and those of an earlier output not.

Shapes: n texts of a chunk, m distinct ones, D dimensions of a vector.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.corpus.reader import Chunk
from fastvec.embedding.options import EmbedOptions
from fastvec.embedding.passages import Passages, rows_of_passages
from fastvec.errors import UsageError
from fastvec.output.earlier import HASH_BYTES, HASH_TYPE, EarlierVectors, as_halves
from fastvec.output.vector_column import FloatArray
from fastvec.system.pipeline import two_at_a_time
from fastvec.texts.passages import Spans, passage_tokens, split
from fastvec.texts.tokenized import TokenizedTexts
from fastvec.texts.tokenizer import TextTokenizer

IntArray = npt.NDArray[np.intp]

TOKENIZERS = 64  # for different instructions, kept at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedChunk:
    """The tokens of a chunk's distinct texts without an earlier vector. Its rows may be passages of the corpus's rows.

    `counts` covers all texts of the chunk: nulls, empty, truncated, repaired, duplicates, reused; tokens are those to
    encode.
    """

    chunk: Chunk
    texts: TokenizedTexts  # to encode: each text, or its passages one after another
    passages: IntArray  # the number of passages of each text to encode
    origin: Passages | None  # if the chunk's rows are passages: where they come from
    reused: FloatArray  # [r, D] vectors of an earlier output
    places: IntArray  # [n], where the vector of each of the chunk's texts is, first among `texts`, then `reused`; or -1
    failed: Mapping[int, str]  # the texts [n] that cannot be encoded, and an error code for each
    hashes: pa.Array | None  # [n], if asked for
    counts: Mapping[str, int]


class ChunkTokenizer:
    """Tokenizes chunks, by a tokenizer for each text's instruction; None is the instruction of the job."""

    def __init__(
        self,
        tokenizer_for: Callable[[str | None], TextTokenizer],
        *,
        options: EmbedOptions,
        earlier: EarlierVectors | None = None,
    ) -> None:
        """Texts that have a vector in `earlier` are not tokenized."""
        self._tokenizer_for = lru_cache(TOKENIZERS)(tokenizer_for)
        self._options, self._earlier = options, earlier
        self._tokenizer_for(None)  # before threads ask for it

    def in_order(self, chunks: Iterable[Chunk], *, instructions: bool) -> Iterator[TokenizedChunk]:
        """Tokenize chunks.

        While Python gathers the tokens of one chunk, the tokenizer works on another on all cores. Not so for chunks
        with `instructions`: making a tokenizer for another instruction changes settings that all of them share.
        """
        return map(self, chunks) if instructions else two_at_a_time(self, chunks)

    def __call__(self, chunk: Chunk) -> TokenizedChunk:
        """Tokenize a chunk. A row's instruction that leaves no room for its text is an error of the row."""
        rows, origin = chunk.kept.num_rows, None
        if self._options.late:
            return self._with_context(chunk)
        if self._options.makes_passages:
            chunk, origin = rows_of_passages(chunk, self._split_or_fail_later)
        distinct = _Distinct(chunk)
        earlier = np.full(len(distinct.texts), -1)
        if self._earlier is not None:
            earlier = self._earlier.find(as_halves(distinct.hashes))
        missing = np.flatnonzero(earlier < 0)
        texts, encoded, passages, codes = self._tokenized(distinct, missing)
        found = np.flatnonzero(earlier >= 0)
        place_of = np.full(len(distinct.texts) + 1, -1, dtype=np.intp)  # the last is that of -1, no text
        place_of[encoded] = np.arange(len(encoded))
        place_of[found] = len(encoded) + np.arange(len(found))
        places = place_of[distinct.places]
        failed = distinct.malformed | {
            int(text): code for index, code in codes.items() for text in np.flatnonzero(distinct.places == index)
        }
        truncated = np.zeros(len(encoded), dtype=np.bool_)
        truncated[np.repeat(np.arange(len(encoded)), passages)[texts.truncated]] = True
        reused = np.zeros((0, 0), dtype=np.float32)
        if self._earlier is not None:
            reused = self._earlier.vectors(earlier[found])
        counts = {
            "nulls": chunk.texts.null_count - len(distinct.malformed),
            "empty": int(distinct.empty[distinct.places[places >= 0]].sum()),
            "truncated": int(truncated[places[(places >= 0) & (places < len(encoded))]].sum()),
            "repaired": chunk.repaired,
            "duplicates": int((distinct.places >= 0).sum()) - len(distinct.texts),
            "tokens": len(texts.ids),
        }
        if self._earlier is not None:
            counts["reused"] = int((places >= len(encoded)).sum())
        if origin is not None:
            counts["input_rows"] = rows
        return TokenizedChunk(
            chunk=chunk,
            texts=texts,
            passages=passages,
            origin=origin,
            reused=reused,
            places=places,
            failed=failed,
            hashes=distinct.hash_column() if self._options.has_hashes else None,
            counts=counts,
        )

    def _with_context(self, chunk: Chunk) -> TokenizedChunk:
        """Tokenize as much of each text at once as fits into a sequence, with the spans of tokens of its passages."""
        tokenizer, overlap = self._tokenizer_for(None), self._options.overlap
        size = passage_tokens(tokenizer, self._options.chunk_tokens, overlap)
        contexts: list[str] = []
        passages: list[Spans] = []

        def split_contexts(texts: Sequence[str], _: str | None) -> list[Spans]:
            whole = split(tokenizer, texts, tokens=tokenizer.room, overlap=0)
            contexts.extend(text[b:e] for text, spans in zip(texts, whole, strict=True) for b, e in spans.tolist())
            passages.extend(split(tokenizer, contexts, tokens=size, overlap=overlap))
            inside = iter(passages)
            return [np.concatenate([next(inside) + begin for begin in spans[:, 0]]) for spans in whole]

        rows = chunk.kept.num_rows
        chunk, origin = rows_of_passages(chunk, split_contexts)
        texts = tokenizer.with_passages(contexts, passages) if contexts else tokenizer([])
        valid = chunk.texts.is_valid().to_numpy(zero_copy_only=False)
        counts = {
            "nulls": int((~valid).sum()) - len(chunk.bad),
            "empty": sum(not context or context.isspace() for context in contexts),
            "truncated": int(texts.truncated.sum()),
            "repaired": chunk.repaired,
            "duplicates": 0,
            "tokens": len(texts.ids),
            "input_rows": rows,
        }
        return TokenizedChunk(
            chunk=chunk,
            texts=texts,
            passages=np.ones(int(valid.sum()), dtype=np.intp),
            origin=origin,
            reused=np.zeros((0, 0), dtype=np.float32),
            places=np.where(valid, np.cumsum(valid) - 1, -1),
            failed=dict.fromkeys(chunk.bad.tolist(), "malformed_row"),
            hashes=None,
            counts=counts,
        )

    def _split(self, texts: Sequence[str], instruction: str | None) -> list[Spans]:
        tokenizer, options = self._tokenizer_for(instruction or None), self._options
        tokens = passage_tokens(tokenizer, options.chunk_tokens, options.overlap)
        return split(tokenizer, texts, tokens=tokens, overlap=options.overlap)

    def _with_passages(self, texts: Sequence[str], instruction: str | None) -> tuple[TokenizedTexts, IntArray]:
        """Tokenize texts, those that are too long in passages if these are averaged; and count each one's passages."""
        tokenizer = self._tokenizer_for(instruction)
        tokens, counts = tokenizer(texts), np.ones(len(texts), dtype=np.intp)
        long = np.flatnonzero(tokens.truncated).tolist()
        if self._options.long != "mean" or not long:
            return tokens, counts
        spans = self._split([texts[index] for index in long], instruction)
        counts[long] = [len(one) for one in spans]
        pieces = [texts[index][b:e] for index, one in zip(long, spans, strict=True) for b, e in one.tolist()]
        is_piece = np.repeat(tokens.truncated, counts)
        places = np.where(is_piece, len(texts) + np.cumsum(is_piece) - 1, np.repeat(np.arange(len(texts)), counts))
        return TokenizedTexts.concatenated([tokens, tokenizer(pieces)]).select(places), counts

    def _split_or_fail_later(self, texts: Sequence[str], instruction: str | None) -> list[Spans]:
        """Split texts; those whose own instruction leaves no room are left whole, and are errors of their rows."""
        try:
            return self._split(texts, instruction)
        except UsageError:
            if not instruction:
                raise
            return [np.array([[0, len(text)]]) for text in texts]

    def _tokenized(
        self, distinct: "_Distinct", wanted: IntArray
    ) -> tuple[TokenizedTexts, IntArray, IntArray, dict[int, str]]:
        """Return the tokens of the distinct texts `wanted`, in another order: which they are, of how many passages.

        The last value has those that failed.
        """
        none = np.zeros(0, dtype=np.intp)
        parts, order, passages = [], [none], [none]
        failed: dict[int, str] = {}
        for instruction, mask in distinct.by_instruction():
            own = wanted[mask[wanted]]
            try:
                tokens, counts = self._with_passages([distinct.texts[index] for index in own], instruction)
                parts.append(tokens)
                order.append(own)
                passages.append(counts)
            except UsageError:
                if instruction is None:
                    raise
                failed |= dict.fromkeys(own.tolist(), "instruction_too_long")
        texts = TokenizedTexts.concatenated(parts) if parts else self._tokenizer_for(None)([])
        return texts, np.concatenate(order), np.concatenate(passages), failed


class _Distinct:
    """The distinct texts of a chunk; the same text with another instruction is another one.

    Attributes:
        texts: The texts [m].
        places: The distinct text of each of the chunk's texts [n]; -1 if it is null.
        malformed: The texts [n] of rows that could not be read, with their error code.
    """

    def __init__(self, chunk: Chunk) -> None:
        texts, count = chunk.texts, len(chunk.texts)
        bad = np.flatnonzero(np.isin(np.arange(count) % chunk.kept.num_rows, chunk.bad))
        self.malformed = dict.fromkeys(bad.tolist(), "malformed_row")
        encoded = texts.dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.intp)
        self._instructions: list[str | None] = [None]
        if chunk.instructions is None:
            self.places, self._instruction_of = codes, np.zeros(len(encoded.dictionary), dtype=np.intp)
            self.texts: list[str] = encoded.dictionary.to_pylist()
            return
        own = chunk.instructions.dictionary_encode()
        self._instructions += own.dictionary.to_pylist()
        instructions = own.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.intp) + 1
        instructions = np.tile(instructions, count // len(instructions))
        pairs = np.where(codes < 0, -1, codes * len(self._instructions) + instructions)
        distinct, places = np.unique(pairs, return_inverse=True)
        nulls = int(len(distinct) > 0 and distinct[0] < 0)  # sorts first
        self.places = places - nulls
        text_of, self._instruction_of = np.divmod(distinct[nulls:], len(self._instructions))
        self.texts = encoded.dictionary.take(pa.array(text_of)).to_pylist()

    def by_instruction(self) -> Iterator[tuple[str | None, npt.NDArray[np.bool_]]]:
        """Yield each instruction and a mask [m] of the texts that it goes before; None is that of the job."""
        for index, instruction in enumerate(self._instructions):
            mask = self._instruction_of == index
            if mask.any():
                yield instruction, mask

    @property
    def empty(self) -> npt.NDArray[np.bool_]:
        """Whether each text [m] is empty or only white space."""
        return np.array([not text or text.isspace() for text in self.texts], dtype=np.bool_)

    @cached_property
    def hashes(self) -> pa.Array:
        """The hash of each text [m] with its own instruction, which depends on nothing else."""
        keys = [blake2b(one.encode(), digest_size=HASH_BYTES).digest() if one else b"" for one in self._instructions]
        own = zip(self.texts, self._instruction_of, strict=True)
        digests = [blake2b(text.encode(), digest_size=HASH_BYTES, key=keys[one]).digest() for text, one in own]
        return pa.array(digests, HASH_TYPE)

    def hash_column(self) -> pa.Array:
        """Return the hash of each of the chunk's texts [n]; null if it is."""
        return self.hashes.take(pa.array(self.places, mask=self.places < 0))
