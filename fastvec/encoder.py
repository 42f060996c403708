"""Encoder: texts to vectors, by a checkpoint's own rules.

A text is tokenised once, shares a packed forward with texts of like length, and its vector is pooled from its own span
of tokens. The order of operations: pool, Dense where the checkpoint has one, truncate to `dims`, normalise.

Shapes: n texts, T packed tokens, D dimensions of a vector.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import tokenizers
import torch
from torch.nn import functional as F

from fastvec.decoders.agreement import SAMPLE, Agreement
from fastvec.decoders.from_files import PlainDecoder
from fastvec.decoders.fused import FusedDecoder
from fastvec.decoders.load import load_decoder, load_dense
from fastvec.decoders.quantized import quantized
from fastvec.decoders.self_check import self_check
from fastvec.errors import ModelError, UsageError
from fastvec.settings import EncoderSettings, resolve_settings
from fastvec.texts.batching import chunk_limits, token_batches, token_budget
from fastvec.texts.load import load_tokenizer
from fastvec.texts.packing import Packed, pack
from fastvec.texts.tokenizer import TextTokenizer, TokenizedTexts, require_embeddings, without_surrogates
from fastvec_kernels import pool, to_host

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]

# texts an `encode` call handles at a time: enough to sort by length, little enough to hold
ENCODE_ROWS = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """The vectors of n texts; `failed` maps a text's index to the code of why it has none (its row holds NaN)."""

    vectors: FloatArray  # [n, D]
    failed: dict[int, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """A chunk of n texts that the device was given, and may not have done yet."""

    texts: TokenizedTexts
    order: npt.NDArray[np.integer]  # [n], which text each row of `vectors` is of
    vectors: torch.Tensor  # [n, D] on the host; NaN for those that failed
    failed: dict[int, str]
    batch_tokens: int
    done: torch.cuda.Event | None = None  # when `vectors` are there; None: they are


class Encoder:
    """A checkpoint, loaded. `batch_tokens` is the token budget of a forward; running out of memory halves it.

    `agreement` says how near a quantised forward came to its `dtype` on the first texts, once there were some.
    """

    def __init__(self, settings: EncoderSettings, *, batch_tokens: int | None = None) -> None:
        """Load the weights, and check on a few tokens that attention sees what it should.

        Raises ModelError where the checkpoint cannot be loaded or fails that check, UsageError for a `max_length` that
        its positions do not hold for.
        """
        self.settings = settings
        self._dtype: torch.dtype = getattr(torch, settings.dtype)
        checkpoint = settings.checkpoint
        self._tokenizer = load_tokenizer(checkpoint)
        self._decoder = load_decoder(
            checkpoint,
            dtype=self._dtype,
            device=settings.device,
            bidirectional=settings.bidirectional,
            positions=settings.max_length,
        )
        require_embeddings(self._tokenizer, len(self._decoder.embeddings), checkpoint.name)
        longest = self._decoder.longest
        if longest is not None and settings.max_length > longest:
            raise UsageError(
                f"max_length {settings.max_length} is out of range: {checkpoint.name} has {longest} positions"
            )
        self._dense = load_dense(checkpoint, device=settings.device)
        self.parameters = sum(parameter.numel() for parameter in self._decoder.model.parameters())
        budget = token_budget(settings.device, self.parameters, self._dtype.itemsize)
        self.batch_tokens = batch_tokens or budget
        self.agreement: Agreement | None = None
        with torch.inference_mode():
            self_check(self._decoder)
            self._fused = self._fuse()
            self._in_floats: FusedDecoder | None = None  # what a quantised forward is still to be compared with
            self._compared: list[tuple[FloatArray, FloatArray]] = []  # vectors in floats, and quantised
            if settings.quantize is not None:
                self._fused, self._in_floats = self._quantized(settings.quantize), self._fused
        direction = "bidirectional" if settings.bidirectional else "causal"
        logger.info("%s runs %s: %s", checkpoint.name, direction, settings.bidirectional_reason)

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
        """Load a transformers, LLM2Vec, PEFT or sentence-transformers folder or hub id; None: as the checkpoint says.

        `adapters` are PEFT folders or ids, merged in this order; `dtype` is of the computation, vectors are float32;
        `eos` says whether the tokenizer's EOS ends every sequence.
        Raises ModelError for a checkpoint that cannot be used, UsageError for a choice that cannot be met.
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

    @property
    def dims(self) -> int:
        """The width of a vector."""
        return self.settings.dims

    @property
    def chunk_limits(self) -> dict[str, int]:
        """The rows and the bytes of text at which a chunk closes, so that encoding one takes seconds on this device."""
        return chunk_limits(self.settings.device, self.parameters)

    @property
    def chunks_ahead(self) -> int:
        """Chunks to begin before one is finished: a GPU goes on with the next while vectors are taken from it."""
        return 1 if self.settings.device == "cuda" else 0

    @property
    def environment(self) -> dict[str, str]:
        """Versions and device: another one may round differently."""
        cuda = self.settings.device == "cuda"
        return {
            "torch": str(torch.__version__),  # a plain string, as the journal gives it back
            "transformers": version("transformers"),
            "tokenizers": tokenizers.__version__,
            "device": torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads",
        }

    def encode(
        self, texts: Sequence[str], instruction: str | None = None, prompt_name: str | None = None
    ) -> FloatArray:
        """The vectors [n, D] of `texts`, in order; lone surrogates are read as U+FFFD.

        Raises UsageError for a text that is no string, ModelError for one for which no finite vector came.
        """
        if isinstance(texts, str):
            raise UsageError("encode takes a list of texts, and was given one string: put it in a list")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise UsageError(f"text {index} is a {type(text).__name__}, not a string: leave it out or fill it in")
        tokenizer = self.tokenizer(instruction, prompt_name)
        vectors = np.empty((len(texts), self.dims), dtype=np.float32)
        for begin in range(0, len(texts), ENCODE_ROWS):
            rows = [without_surrogates(text) for text in texts[begin : begin + ENCODE_ROWS]]
            encoded = self.encode_tokens(tokenizer(rows))
            for index, code in encoded.failed.items():
                remedy = "leave it out" if code == "token_without_embedding" else "try dtype float32"
                raise ModelError(f"text {begin + index} has no vector ({code}): {remedy}")
            vectors[begin : begin + len(rows)] = encoded.vectors
        return vectors

    def tokenizer(self, instruction: str | None = None, prompt_name: str | None = None) -> TextTokenizer:
        """What turns texts into token ids by this checkpoint's rules; raises UsageError as `EncoderSettings.prefix`."""
        return self.settings.text_tokenizer(self._tokenizer, instruction, prompt_name)

    def input_embeddings(self) -> FloatArray:
        """The table [V, hidden_size] that token ids are looked up in, in float32."""
        return self._decoder.embeddings.detach().float().cpu().numpy()

    def encode_tokens(self, texts: TokenizedTexts, between_batches: Callable[[], None] = lambda: None) -> Encoded:
        """Encode one chunk of texts, as `begin` and `finish` do."""
        return self.finish(self.begin(texts, between_batches))

    def begin(self, texts: TokenizedTexts, between_batches: Callable[[], None] = lambda: None) -> Begun:
        """Give one chunk of texts to the device. What `between_batches` raises ends it.

        Out of memory halves the token budget and takes the whole chunk again, so that a chunk's batches always follow
        from its lengths and one budget; a text that is too large alone has failed. Raises ModelError where not even
        the vectors of a chunk find room, and where a quantised forward turns those of the first texts too far.
        """
        while True:
            try:
                with torch.inference_mode():
                    if self._in_floats is not None and len(texts):
                        self._compare_quantized(texts.sample(SAMPLE), between_batches)
                    return self._begin(texts, between_batches)
            except torch.OutOfMemoryError:
                pass  # the traceback holds the batch's tensors until this block is left
            if self.batch_tokens == 1:
                raise ModelError(f"{self.settings.device} has no memory left beside the model: free some, or use cpu")
            self.batch_tokens = max(min(self.batch_tokens, int(texts.lengths.sum())) // 2, 1)
            torch.cuda.empty_cache()
            logger.warning("out of memory: going on with batches of %d tokens", self.batch_tokens)

    def _begin(self, texts: TokenizedTexts, between_batches: Callable[[], None]) -> Begun:
        embeddings = len(self._decoder.embeddings)
        failed = {int(row): "token_without_embedding" for row in texts.beyond(embeddings)}
        if failed:  # in its place in a batch stays a text of as many tokens
            texts = replace(texts, ids=np.minimum(texts.ids, embeddings - 1))
        batches = token_batches(texts.lengths, self.batch_tokens)
        out = torch.full((len(texts), self.dims), torch.nan, device=self.settings.device)
        begin = 0
        for rows in batches:
            between_batches()
            end = begin + len(rows)
            try:
                out[begin:end] = self._vectors(self._packed(texts, rows))
            except torch.OutOfMemoryError:
                if len(rows) > 1:
                    raise
                failed[int(rows[0])] = "out_of_memory"
            begin = end
        order = np.concatenate([np.arange(0), *batches])
        vectors, done = to_host(out)
        return Begun(
            texts=texts, order=order, vectors=vectors, failed=failed, batch_tokens=self.batch_tokens, done=done
        )

    def finish(self, begun: Begun) -> Encoded:
        """Wait for a chunk; texts whose vectors are not finite are tried again, alone in float32."""
        if begun.done is not None:
            begun.done.synchronize()
        vectors = np.empty(begun.vectors.shape, dtype=np.float32)
        vectors[begun.order] = begun.vectors.numpy()
        failed = dict(begun.failed)
        vectors[list(failed)] = np.nan
        suspects = set(np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist()) - failed.keys()
        for row in sorted(suspects):
            with torch.inference_mode():
                vectors[row] = self._alone_in_float32(begun.texts, row)
            if not np.isfinite(vectors[row]).all():
                failed[row] = "non_finite_vector"
        return Encoded(vectors=vectors, failed=failed)

    def _compare_quantized(self, texts: TokenizedTexts, between_batches: Callable[[], None]) -> None:
        """Raises ModelError where they are too far; done until there were texts enough to have neighbours."""
        found = self.finish(self._begin(texts, between_batches))
        fused, self._fused = self._fused, self._in_floats
        try:
            expected = self.finish(self._begin(texts, between_batches))
        finally:
            self._fused = fused
        self._compared.append((expected.vectors, found.vectors))
        agreement = Agreement.of(*(np.concatenate(vectors) for vectors in zip(*self._compared, strict=True)))
        agreement.require(str(self.settings.quantize), self.settings.dtype)
        logger.info("%s against %s: %s", self.settings.quantize, self.settings.dtype, agreement)
        self.agreement = agreement
        if agreement.overlap is not None:
            self._in_floats = None
            self._compared.clear()

    def _packed(self, texts: TokenizedTexts, rows: npt.NDArray[np.integer]) -> Packed:
        return pack([texts.sequence(row) for row in rows], texts.spans[rows], device=self.settings.device)

    def _vectors(self, packed: Packed) -> torch.Tensor:
        """The finished vectors [n, D], float32."""
        settings = self.settings
        last: dict[str, Any] = {}
        if self._fused is None:
            hidden = self._decoder(packed)
        else:
            hidden, residual = self._fused(packed)
            norm = self._fused.norm
            last = {"residual": residual, "weight": norm.weight, "eps": norm.eps}
        if not len(self._dense):
            last |= {"dims": settings.dims, "normalize": settings.normalize}
            return pool(hidden, packed.spans, settings.pooling, **last)
        vectors = self._dense(pool(hidden, packed.spans, settings.pooling, **last))[:, : settings.dims]
        return F.normalize(vectors, dim=-1) if settings.normalize else vectors

    def _alone_in_float32(self, texts: TokenizedTexts, row: int) -> FloatArray:
        """The vector [D] of a text whose low-precision forward overflowed; NaN where float32 finds no memory."""
        try:
            with self._float32_weights():
                return self._vectors(self._packed(texts, np.array([row])))[0].cpu().numpy()
        except torch.OutOfMemoryError:
            return np.full(self.dims, np.nan, dtype=np.float32)

    @contextmanager
    def _float32_weights(self) -> Iterator[None]:
        """Hold the weights in float32 for a while; widening and narrowing again loses nothing.

        Tensors that are float32 already (rotary frequencies) stay as they are. The fast path is made anew each time:
        its weights are its own.
        """
        model, kept = self._decoder.model, None if self.settings.quantize is None else self._fused
        self._fused = None
        narrow = [tensor for tensor in chain(model.parameters(), model.buffers()) if tensor.dtype == self._dtype]
        try:
            for tensor in narrow:
                tensor.data = tensor.data.float()
            self._fused = self._fuse()
            yield
        finally:
            for tensor in narrow:
                tensor.data = tensor.data.to(self._dtype)
            self._fused = self._fuse() if kept is None else kept

    def _quantized(self, quantize: str) -> FusedDecoder:
        if self._fused is None:
            raise UsageError(
                f"quantize {quantize} is for decoders of Llama's skeleton, and {self.settings.checkpoint.name} runs "
                "through transformers: leave it out"
            )
        return quantized(self._fused, quantize, self.settings.weight_bits)

    def _fuse(self) -> FusedDecoder | None:
        if isinstance(self._decoder, PlainDecoder):
            return self._decoder.fuse()
        from fastvec.decoders.detection import fuse

        return fuse(self._decoder, self.settings.max_length)
