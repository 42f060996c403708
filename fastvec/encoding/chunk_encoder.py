"""Encodes chunks of tokenized texts: in batches of similar length, asynchronously on a GPU, within its memory.

A text shares a packed forward pass (`forward`) with texts of similar length. Its vector is pooled from its own span of
tokens.

Shapes: n texts, D dimensions of a vector.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
import torch

from fastvec.decoders.agreement import SAMPLE, Agreement
from fastvec.decoders.cpu_choices import CpuChoices
from fastvec.decoders.kernel_check import replaced_ops
from fastvec.errors import ModelError, UsageError
from fastvec.forward import Forward
from fastvec.settings import EncoderSettings, require_whole
from fastvec.system.allocator import keep_freed_memory
from fastvec.texts.batching import chunk_limits, is_long_job, row_multiple, token_batches, token_budget
from fastvec.texts.load import load_tokenizer
from fastvec.texts.packing import pack_flat
from fastvec.texts.tokenized import TokenizedTexts
from fastvec.texts.tokenizer import TextTokenizer, require_embeddings
from fastvec_kernels import to_device, to_host

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]

WARM_UP = 8  # texts
SLOWER = 0.95  # relative speed of a quantized forward below which it is called slower: noise of the measurement


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """The vectors of n texts. `failed` maps the index of a text without a vector (its row is NaN) to an error code."""

    vectors: FloatArray  # [n, D]
    failed: dict[int, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmittedChunk:
    """A chunk of n texts that was submitted to the device, which may not have finished it."""

    texts: TokenizedTexts
    vectors: torch.Tensor  # [n, D] on the host; rows of `failed` are not valid
    finite: torch.Tensor  # [n] bool on the host
    failed: dict[int, str]
    batch_tokens: int
    done: torch.cuda.Event | None = None  # recorded after the copy to the host; None if both are complete


class ChunkEncoder:
    """A loaded checkpoint. `batch_tokens` is the token budget of a forward pass; running out of memory halves it.

    `agreement` compares quantized vectors with those in `dtype`, on the first texts; it is None until then.
    """

    def __init__(self, settings: EncoderSettings, *, batch_tokens: int | None = None) -> None:
        """Load the weights, and check on a few tokens that attention is bidirectional or causal, as it should be.

        Raises ModelError if the checkpoint cannot be loaded or fails that check, UsageError if it does not support
        `max_length` or `quantize`.
        """
        self.settings = settings
        if settings.device == "cpu":
            keep_freed_memory()
        self._tokenizer = load_tokenizer(settings.checkpoint)
        self._forward = Forward(settings)
        self.parameters = self._forward.parameters
        require_embeddings(self._tokenizer, len(self._forward.embeddings), settings.checkpoint.name)
        dtype: torch.dtype = getattr(torch, settings.dtype)
        self.batch_tokens = batch_tokens or token_budget(settings.device, self.parameters, dtype.itemsize)
        self.agreement: Agreement | None = None
        self._measured = False
        # unquantized and quantized vectors, and the seconds that each of them took
        self._compared: list[tuple[FloatArray, FloatArray, float, float]] = []
        direction = "bidirectional" if settings.bidirectional else "causal"
        logger.info("%s runs %s: %s", settings.checkpoint.name, direction, settings.bidirectional_reason)

    @property
    def dims(self) -> int:
        """The width of a vector."""
        return self.settings.dims

    @property
    def chunk_limits(self) -> dict[str, int]:
        """The rows and the bytes of text at which a chunk ends, so that encoding one takes seconds on this device."""
        return chunk_limits(self.settings.device, self.parameters, self.settings.max_length)

    @property
    def chunks_ahead(self) -> int:
        """Chunks to begin before one is finished: a GPU computes the next one while vectors are copied from it."""
        return 1 if self.settings.device == "cuda" else 0

    @property
    def choices(self) -> dict[str, Any] | None:
        """How matrix products and attention are computed on a CPU; None on a GPU."""
        choices = self._forward.choices
        return None if choices is None else choices.to_json()

    def choose(self, choices: Mapping[str, Any]) -> None:
        """Compute by these `choices`, e.g. those of the run that is resumed."""
        self._forward.choose(CpuChoices.from_json(choices))

    def measure_for(self, text_bytes: int) -> None:
        """On a CPU, measure which choices are fastest, unless so many bytes of text are encoded in few seconds.

        A quantized model keeps the defaults: most of its products are neither of what is measured.
        """
        long = is_long_job(self.settings.device, self.parameters, text_bytes)
        if long and not self._measured and self.settings.quantize is None:
            self._measured = True
            self._forward.measure()
            if self._forward.choices is not None:
                logger.info("on this CPU, %s", self._forward.choices)

    @property
    def environment(self) -> dict[str, str]:
        """Library versions and device; with others, vectors may round differently."""
        cuda = self.settings.device == "cuda"
        found = {
            "torch": str(torch.__version__),  # a plain string, to equal the one that the journal returns
            "transformers": version("transformers"),
            "tokenizers": tokenizers.__version__,
            "device": torch.cuda.get_device_name() if cuda else _cpu(),
        }
        return found | ({"torch_ops": ", ".join(self.torch_ops)} if self.torch_ops else {})

    @property
    def torch_ops(self) -> tuple[str, ...]:
        """The ops that run without their kernels, although this device has kernels for them."""
        return replaced_ops(self.settings.device)

    @contextmanager
    def batches_of(self, tokens: int | None) -> Iterator[None]:
        """Set the token budget in this block; None leaves the encoder's own.

        Its own is restored afterwards, unless memory ran out in the block. Raises UsageError for a budget below 1.
        """
        if tokens is not None and require_whole("batch_tokens", tokens) < 1:
            raise UsageError(f"batch_tokens {tokens} is out of range: the minimum is 1")
        own, given = self.batch_tokens, tokens or self.batch_tokens
        self.batch_tokens = given
        try:
            yield
        finally:
            if self.batch_tokens == given:
                self.batch_tokens = own

    def tokenizer(self, instruction: str | None = None, prompt_name: str | None = None) -> TextTokenizer:
        """Return what turns texts into token ids by the checkpoint's rules; for errors see `EncoderSettings.prefix`."""
        return self.settings.text_tokenizer(self._tokenizer, instruction, prompt_name)

    def input_embeddings(self) -> FloatArray:
        """Return the table [V, hidden_size] of input embeddings, in float32."""
        return self._forward.embeddings.detach().float().cpu().numpy()

    def encode_tokens(self, texts: TokenizedTexts, between_batches: Callable[[], None] = lambda: None) -> Encoded:
        """Encode one chunk of texts, with `begin` and `finish`."""
        return self.finish(self.begin(texts, between_batches))

    def begin(self, texts: TokenizedTexts, between_batches: Callable[[], None] = lambda: None) -> SubmittedChunk:
        """Submit one chunk of texts to the device. An exception from `between_batches` ends it.

        Running out of memory halves the token budget and restarts the chunk, so that its batches depend only on its
        lengths and one budget; a single text that does not fit into memory fails. Raises ModelError if not even the
        chunk's vectors fit, or if quantization changes the vectors of the first texts too much.
        """
        while True:
            try:
                with torch.inference_mode():
                    if self._forward.has_unquantized and len(texts):
                        self._compare_quantized(texts.sample(SAMPLE), between_batches)
                    return self._begin(texts, between_batches)
            except torch.OutOfMemoryError:
                pass  # the traceback keeps the batch's tensors alive until this block ends
            if self.batch_tokens == 1:
                raise ModelError(
                    f"{self.settings.device} has too little memory left beside the model: free some, or use device cpu"
                )
            self.batch_tokens = max(min(self.batch_tokens, int(texts.lengths.sum())) // 2, 1)
            torch.cuda.empty_cache()
            logger.warning("out of memory: continuing with batches of %d tokens", self.batch_tokens)

    def _begin(self, texts: TokenizedTexts, between_batches: Callable[[], None]) -> SubmittedChunk:
        embeddings = len(self._forward.embeddings)
        failed = {int(span): "token_without_embedding" for span in texts.spans_of(texts.beyond(embeddings))}
        if failed:  # keep their lengths, and so the batches, with ids that have an embedding
            texts = replace(texts, ids=np.minimum(texts.ids, embeddings - 1))
        batches = token_batches(texts.lengths, self.batch_tokens)
        device = self._forward.embeddings.device  # its GPU's number too: a thread's current one is the first
        out = torch.full((len(texts.spans), self.dims), torch.nan, device=device)
        begin = 0
        spans = [texts.spans_of(rows) for rows in batches]
        for rows, own in zip(batches, spans, strict=True):
            between_batches()
            end = begin + len(own)
            try:
                out[begin:end] = self._vectors(texts, rows)
            except torch.OutOfMemoryError:
                if len(rows) > 1:
                    raise
                failed |= dict.fromkeys(own.tolist(), "out_of_memory")
            begin = end
        place = np.empty(len(texts.spans), dtype=np.int64)  # of each vector in batch order
        place[np.concatenate([np.arange(0), *spans])] = np.arange(len(texts.spans))
        # in the texts' order and checked on the device: for short texts, this takes the host as long as their forward
        out = out[to_device(place, device)]
        (vectors, finite), done = to_host(out, out.isfinite().all(dim=1))
        return SubmittedChunk(
            texts=texts, vectors=vectors, finite=finite, failed=failed, batch_tokens=self.batch_tokens, done=done
        )

    def finish(self, begun: SubmittedChunk) -> Encoded:
        """Wait for a chunk. Texts whose vectors are not finite are encoded again, alone and in float32."""
        if begun.done is not None:
            begun.done.synchronize()
        vectors, finite = begun.vectors.numpy(), begun.finite.numpy()
        failed = dict(begun.failed)
        vectors[list(failed)] = np.nan
        if again := [row for row in np.flatnonzero(~finite).tolist() if row not in failed]:
            with torch.inference_mode():
                vectors[again] = self._retry_in_float32(begun.texts, again)
            failed |= {row: "non_finite_vector" for row in again if not np.isfinite(vectors[row]).all()}
        return Encoded(vectors=vectors, failed=failed)

    def _compare_quantized(self, texts: TokenizedTexts, between_batches: Callable[[], None]) -> None:
        """Raise ModelError if quantized vectors differ too much; repeated until enough texts were compared."""
        found, found_seconds = self._timed(texts, between_batches)
        with self._forward.unquantized():
            expected, expected_seconds = self._timed(texts, between_batches)
        self._compared.append((expected, found, expected_seconds, found_seconds))
        theirs, ours, seconds, quantized_seconds = zip(*self._compared, strict=True)
        speed = sum(seconds) / sum(quantized_seconds)
        agreement = replace(Agreement.of(np.concatenate(theirs), np.concatenate(ours)), speed=speed)
        quantize, dtype = str(self.settings.quantize), self.settings.dtype
        agreement.require(quantize, dtype)
        logger.info("%s against %s: %s", quantize, dtype, agreement)
        if agreement.overlap is not None and speed < SLOWER and self.settings.device == "cpu":
            rate = agreement.texts / sum(quantized_seconds)
            rates = f"{rate:,.0f} texts/s against {rate / speed:,.0f}"
            logger.warning("%s is slower than %s on this CPU: %s; leave --quantize out", quantize, dtype, rates)
        self.agreement = agreement
        if agreement.overlap is not None:
            self._forward.drop_unquantized()
            self._compared.clear()

    def _timed(self, texts: TokenizedTexts, between_batches: Callable[[], None]) -> tuple[FloatArray, float]:
        """Return the vectors of `texts` and the seconds that they took, after a few to warm up."""
        self.finish(self._begin(texts.sample(WARM_UP), between_batches))
        started = time.perf_counter()
        vectors = self.finish(self._begin(texts, between_batches)).vectors
        return vectors, time.perf_counter() - started

    def _vectors(self, texts: TokenizedTexts, rows: npt.NDArray[np.integer]) -> torch.Tensor:
        """Return the vectors [n, D] of some rows of `texts`, which are one batch."""
        own = texts.select(rows)
        device = self._forward.embeddings.device
        multiple = row_multiple(device.type, len(own.ids))
        packed = pack_flat(own.ids, own.lengths, own.spans, owners=own.owners, device=device, multiple=multiple)
        return self._forward(packed)

    def _retry_in_float32(self, texts: TokenizedTexts, spans: Sequence[int]) -> FloatArray:
        """Encode texts, of which the vectors of n `spans` are not finite, each alone in float32; returns these [n, D].

        A vector is NaN if memory runs out, and where float32 is what it was computed in.
        """
        found = np.full((len(spans), self.dims), np.nan, dtype=np.float32)
        if self.settings.arithmetic == "float32":
            return found
        with suppress(torch.OutOfMemoryError), self._forward.in_float32():
            for vector, span in zip(found, spans, strict=True):
                row = np.array([texts.owner(span)])
                with suppress(torch.OutOfMemoryError):
                    vector[:] = self._vectors(texts, row)[span - texts.spans_of(row)[0]].cpu().numpy()
        return found


def without_vector(name: str, code: str) -> ModelError:
    """Return the error to raise for the text `name`, which failed with this `code`."""
    remedy = "leave it out" if code == "token_without_embedding" else "try dtype float32"
    return ModelError(f"{name} has no vector ({code}): {remedy}")


def _cpu() -> str:
    """Return what the rounding of sums depends on: the instructions that torch uses, and the number of threads."""
    return f"cpu with {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
