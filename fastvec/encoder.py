"""The encoder turns texts into vectors by a checkpoint's own rules.

Shapes: n texts, D dimensions of a vector.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal, Self, get_args, overload

import numpy as np
import numpy.typing as npt
import torch

from fastvec.encoding.chunk_encoder import ChunkEncoder, SubmittedChunk, without_vector
from fastvec.encoding.inputs import Texts, read_texts
from fastvec.encoding.progress_bar import progress_bar
from fastvec.encoding.similarity import similarities
from fastvec.encoding.stream import encode_stream, source_items
from fastvec.encoding.stream_items import ItemReader
from fastvec.errors import UsageError
from fastvec.output.vector_column import to_column
from fastvec.settings import resolve_settings
from fastvec.texts.batching import token_batches
from fastvec.texts.tokenizer import TextTokenizer, without_surrogates

__all__ = ["Encoder", "SubmittedChunk"]

FloatArray = npt.NDArray[np.float32]
Format = Literal["numpy", "torch", "arrow"]

# texts that `encode` handles at a time: enough to sort by length, few enough to hold in memory
ENCODE_ROWS = 8192


class Encoder(ChunkEncoder):
    """A loaded checkpoint, which turns texts into vectors.

    `batch_tokens` is the token budget of a forward pass; running out of memory halves it.
    """

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        adapters: Sequence[str | Path] = (),
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        quantize: str | None = None,
        pooling: str | None = None,
        normalize: bool | None = None,
        max_length: int | None = None,
        bidirectional: bool | None = None,
        eos: bool | None = None,
        dims: int | None = None,
    ) -> Self:
        """Load a transformers, LLM2Vec, PEFT or sentence-transformers folder or hub id; None is the bundled model.

        `adapters` are PEFT folders or hub ids, merged in this order. `dtype` is that of the computation; vectors are
        float32. `eos` says whether the tokenizer's EOS ends every sequence. None leaves an option to the checkpoint.
        Raises ModelError if the checkpoint cannot be used, UsageError if an option is not supported.
        """
        settings = resolve_settings(
            model,
            adapters=adapters,
            revision=revision,
            device=device,
            dtype=dtype,
            quantize=quantize,
            pooling=pooling,
            normalize=normalize,
            max_length=max_length,
            bidirectional=bidirectional,
            eos=eos,
            dims=dims,
        )
        return cls(settings)

    @overload
    def encode(
        self,
        texts: Texts,
        instruction: str | None = None,
        prompt_name: str | None = None,
        *,
        show_progress_bar: bool | None = None,
        batch_tokens: int | None = None,
        convert_to: Literal["numpy"] = "numpy",
    ) -> FloatArray: ...
    @overload
    def encode(
        self,
        texts: Texts,
        instruction: str | None = None,
        prompt_name: str | None = None,
        *,
        show_progress_bar: bool | None = None,
        batch_tokens: int | None = None,
        convert_to: Format,
    ) -> Any: ...
    def encode(
        self,
        texts: Texts,
        instruction: str | None = None,
        prompt_name: str | None = None,
        *,
        show_progress_bar: bool | None = None,
        batch_tokens: int | None = None,
        convert_to: Format = "numpy",
    ) -> Any:
        """Return the vectors [n, D] of `texts`, in order, or the vector [D] of a single string.

        Args:
            texts: A list, tuple or other sequence of strings; a NumPy array; a pandas or polars Series; an Arrow array
                of strings, large or dictionary-encoded or not; or one string. Lone surrogates are read as U+FFFD.
            instruction: An instruction before every text.
            prompt_name: The name of one of the checkpoint's prompts, to put it before every text.
            show_progress_bar: Show a progress bar on stderr, if that is a terminal, or in a notebook, which needs
                ipywidgets. None shows none.
            batch_tokens: The token budget of a forward pass in this call; None is the encoder's own.
            convert_to: `numpy`, a float32 array; `torch`, a float32 tensor on the encoder's device; or `arrow`, a
                FixedSizeListArray of float32.

        Raises:
            UsageError: One of `texts` is null or not a string, or an option cannot be used.
            ModelError: A text has no finite vector.
        """
        if convert_to not in get_args(Format):
            raise UsageError(f"convert_to {convert_to!r} is not known: choose {', '.join(get_args(Format))}")
        rows = [texts] if isinstance(texts, str) else read_texts(texts)
        tokenizer = self.tokenizer(instruction, prompt_name)
        self.measure_for(sum(map(len, rows)))  # in characters, near enough
        vectors = np.empty((len(rows), self.dims), dtype=np.float32)
        with self.batches_of(batch_tokens), progress_bar(len(rows), show=show_progress_bar) as show:
            for begin in range(0, len(rows), ENCODE_ROWS):
                some = rows[begin : begin + ENCODE_ROWS]
                vectors[begin : begin + len(some)] = self._encode_rows(some, begin, tokenizer, show)
                show(begin + len(some))
        converted = self._converted(vectors, convert_to)
        return converted[0] if isinstance(texts, str) else converted

    def encode_query(
        self,
        texts: Texts,
        instruction: str | None = None,
        prompt_name: str | None = None,
        *,
        show_progress_bar: bool | None = None,
        batch_tokens: int | None = None,
        convert_to: Format = "numpy",
    ) -> Any:
        """Encode queries as `encode` does, with the checkpoint's prompt named `query`.

        Without such a prompt they have none, not even the default prompt, as in sentence-transformers. A given
        `instruction` or `prompt_name` takes its place.
        """
        return self._encode_as(
            "query",
            texts,
            instruction,
            prompt_name,
            show_progress_bar=show_progress_bar,
            batch_tokens=batch_tokens,
            convert_to=convert_to,
        )

    def encode_document(
        self,
        texts: Texts,
        instruction: str | None = None,
        prompt_name: str | None = None,
        *,
        show_progress_bar: bool | None = None,
        batch_tokens: int | None = None,
        convert_to: Format = "numpy",
    ) -> Any:
        """Encode documents, to be found by queries: as `encode_query`, with the prompt named `document`."""
        return self._encode_as(
            "document",
            texts,
            instruction,
            prompt_name,
            show_progress_bar=show_progress_bar,
            batch_tokens=batch_tokens,
            convert_to=convert_to,
        )

    def similarity(self, a: Any, b: Any) -> FloatArray:
        """Return the similarities [n, m] of vectors `a` [n, D] and `b` [m, D], in float32.

        The function is the one that a sentence-transformers checkpoint names (`cosine`, `dot`, or the negative
        `euclidean` or `manhattan` distance), else the cosine. Vectors are arrays or tensors; one vector [D] is read as
        [1, D]. Raises UsageError for other shapes.
        """
        return similarities(a, b, self.settings.checkpoint.similarity)

    def stream(
        self,
        batches: Iterable[Any],
        *,
        column: str | None = None,
        vector_column: str = "embedding",
        instruction: str | None = None,
        prompt_name: str | None = None,
    ) -> Generator[Any, None, None]:
        """Encode an iterator of any length, and yield a result for each item, in order.

        A text gives its vector [D]; a batch of n texts, which is anything that `encode` takes, its vectors [n, D]; a
        record batch or table the same with the column of vectors appended, null where the text is null. A
        pyarrow.RecordBatchReader yields record batches.

        The iterator is read in another thread, by a few chunks ahead, however many items that are: three on a CPU, six
        on a GPU. A chunk has as many texts as take seconds to encode. Encoding takes place in the caller's thread on a
        CPU. Closing the generator, as leaving a loop over it does, ends the threads and closes the iterator, once the
        iterator has returned the item that it is being asked for.

        Args:
            batches: The iterator.
            column: The text column of record batches and tables, or a field of a struct with its dotted name; None
                chooses it as `embed` does.
            vector_column: The name of the appended column.
            instruction: An instruction before every text.
            prompt_name: The name of one of the checkpoint's prompts, to put it before every text.

        Raises:
            UsageError: `batches` is not an iterator of such items, or an option cannot be used. For an item that is
                not one, or has a text that is not a string, it is raised in place of the item's result.
            ModelError: A text has no finite vector; raised in place of its item's result.
        """
        tokenizer = self.tokenizer(instruction, prompt_name)
        return encode_stream(self, source_items(batches), tokenizer, ItemReader(column, vector_column))

    def _encode_as(
        self, kind: str, texts: Texts, instruction: str | None, prompt_name: str | None, **options: Any
    ) -> Any:
        if instruction is None and prompt_name is None:
            instruction, prompt_name = self.settings.prompt_of(kind)
        return self.encode(texts, instruction, prompt_name, **options)

    def _encode_rows(
        self, texts: list[str], begin: int, tokenizer: TextTokenizer, show: Callable[[float], None]
    ) -> FloatArray:
        tokenized = tokenizer([without_surrogates(text) for text in texts])
        batches, done = len(token_batches(tokenized.lengths, self.batch_tokens)), count()
        encoded = self.encode_tokens(tokenized, lambda: show(begin + len(texts) * min(next(done) / batches, 1)))
        for index, code in encoded.failed.items():
            raise without_vector(f"text {begin + index}", code)
        return encoded.vectors

    def _converted(self, vectors: FloatArray, format: Format) -> Any:
        if format == "torch":
            return torch.from_numpy(vectors).to(self.settings.device)
        if format == "arrow":
            return to_column(vectors, np.ones(len(vectors), dtype=np.bool_), "float32")
        return vectors
