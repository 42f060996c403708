"""The forward pass: from packed sequences to finished vectors, by a checkpoint's decoder, pooling and Dense layers.

Order of operations: decode, pool, apply any Dense layers, truncate to `dims`, normalize.

Shapes: n texts, D dimensions of a vector.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch.nn import functional as F

from fastvec.decoders.cpu_choices import CpuChoices
from fastvec.decoders.from_files import PlainDecoder
from fastvec.decoders.fused import FusedDecoder
from fastvec.decoders.kernel_check import call_kernels, kernel_check
from fastvec.decoders.load import load_decoder, load_dense
from fastvec.decoders.quantized import quantized
from fastvec.decoders.self_check import self_check
from fastvec.errors import UsageError
from fastvec.settings import EncoderSettings
from fastvec.texts.packing import Packed
from fastvec_kernels import pool, to_device
from fastvec_kernels.pooling.op import pooled_bounds


class Forward:
    """A loaded model, on the fused path if the decoder is Llama-style, else through transformers."""

    def __init__(self, settings: EncoderSettings) -> None:
        """Load the weights, and check the kernels and the decoder's attention on a few tokens.

        Raises ModelError if the checkpoint cannot be loaded or fails the check of its attention, UsageError if it does
        not support `quantize` or `max_length`.
        """
        self._settings = settings
        self._dtype: torch.dtype = getattr(torch, settings.dtype)
        self._decoder = load_decoder(
            settings.checkpoint,
            dtype=self._dtype,
            device=settings.device,
            bidirectional=settings.bidirectional,
            positions=settings.max_length,
        )
        longest = self._decoder.longest
        if longest is not None and settings.max_length > longest:
            raise UsageError(
                f"max_length {settings.max_length} is out of range: {settings.checkpoint.name} has {longest} "
                f"positions; lower max_length to {longest}"
            )
        self._dense = load_dense(settings.checkpoint, device=settings.device)
        self._unquantized: FusedDecoder | None = None
        self._choices: CpuChoices | None = None
        with torch.inference_mode(), kernel_check():
            self_check(self._decoder)
            self._fused = self._fuse()
            if settings.device == "cpu" and self._fused is not None:
                self.choose(CpuChoices.default(self._fused))
            call_kernels(self, self._decoder.vocabulary, settings.max_length, settings.device)
            if settings.quantize is not None:
                self._fused, self._unquantized = self._quantized(settings.quantize), self._fused
                call_kernels(self, self._decoder.vocabulary, settings.max_length, settings.device)

    @property
    def embeddings(self) -> torch.Tensor:
        """The token embedding table [V, hidden_size]."""
        return self._decoder.embeddings

    @property
    def parameters(self) -> int:
        """The number of the decoder's parameters."""
        return sum(parameter.numel() for parameter in self._decoder.model.parameters())

    def __call__(self, packed: Packed) -> torch.Tensor:
        """Return the vectors [n, D], float32."""
        settings, spans = self._settings, packed.spans
        last: dict[str, Any] = {}
        if self._fused is None:
            hidden = self._decoder(packed)
        else:
            tokens = None
            if settings.pooling in ("last", "first"):
                pooled, _ = pooled_bounds(spans, len(packed.token_ids), settings.pooling)
                tokens = to_device(pooled, packed.token_ids.device)
                place = torch.arange(len(spans))  # only the pooled tokens are returned
                spans = torch.stack([place, place + 1], dim=1)
            hidden, residual = self._fused(packed, tokens)
            norm = self._fused.norm
            last = {"residual": residual, "weight": norm.weight, "eps": norm.eps}
        if not len(self._dense):
            last |= {"dims": settings.dims, "normalize": settings.normalize}
            return pool(hidden, spans, settings.pooling, **last)
        vectors = self._dense(pool(hidden, spans, settings.pooling, **last))[:, : settings.dims]
        return F.normalize(vectors, dim=-1) if settings.normalize else vectors

    @property
    def choices(self) -> CpuChoices | None:
        """How the fused path is computed on a CPU; None on a GPU or without the fused path."""
        return self._choices

    def measure(self) -> None:
        """On a CPU, compute by what is fastest there, found by measuring. Raises TypeError for a quantized model."""
        if self._choices is not None and self._fused is not None:
            with torch.inference_mode():
                self.choose(CpuChoices.measured(self._fused, self._settings.max_length))

    def choose(self, choices: CpuChoices) -> None:
        """Compute the fused path by these choices from now on."""
        self._choices = choices
        if self._fused is not None:
            self._fused = choices.apply(self._fused)
        if self._unquantized is not None:
            self._unquantized = choices.apply(self._unquantized)

    @property
    def has_unquantized(self) -> bool:
        """Whether the model is quantized and can still run `unquantized`."""
        return self._unquantized is not None

    @contextmanager
    def unquantized(self) -> Iterator[None]:
        """Run a quantized model unquantized in this block; until `drop_unquantized`."""
        fused, self._fused = self._fused, self._unquantized
        try:
            yield
        finally:
            self._fused = fused

    def drop_unquantized(self) -> None:
        """Free what only `unquantized` needs."""
        self._unquantized = None

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Convert the weights to float32 in this block; widening and narrowing back loses nothing.

        Tensors that are float32 already (rotary frequencies) stay as they are. The fused path still has the narrow
        weights, so it is rebuilt each time; a quantized one is put back.
        """
        model, kept = self._decoder.model, None if self._settings.quantize is None else self._fused
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
            if self._choices is not None:
                self.choose(self._choices)

    def _quantized(self, quantize: str) -> FusedDecoder:
        if self._fused is None:
            raise UsageError(
                f"quantize {quantize} needs a Llama-style decoder, and {self._settings.checkpoint.name} runs "
                "through transformers: leave it out"
            )
        return quantized(self._fused, quantize, self._settings.weight_bits)

    def _fuse(self) -> FusedDecoder | None:
        if isinstance(self._decoder, PlainDecoder):
            return self._decoder.fuse()
        from fastvec.decoders.detection import fuse

        return fuse(self._decoder, self._settings.max_length)
