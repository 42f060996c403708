"""Estimates a job for `--dry-run`: tokens, bytes and time, from a sample of its rows and a short trial of the model."""

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvec.corpus.reader import Chunk, ChunkLimits
from fastvec.decoders.agreement import SAMPLE as COMPARED
from fastvec.embedding.plan import EmbedPlan
from fastvec.embedding.tokenized_chunks import ChunkTokenizer
from fastvec.texts.tokenized import TokenizedTexts
from fastvec.texts.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from fastvec.encoder import Encoder

SAMPLE_PLACES = 8  # spread over the corpus, whose parts often differ
SAMPLE_ROWS = 64  # at each place
TRIAL_SECONDS = 5.0
TRIAL_ROWS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    rows: int
    tokens: int  # of all rows, extrapolated from the sample's mean
    sampled_rows: int
    output_bytes: int  # of vectors and row numbers, without kept columns
    seconds: float  # for all rows, at the trial's rate
    tokens_per_second: float
    output: str
    model: str
    device: str

    @property
    def return_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        where = "one GPU" if self.device == "cuda" else self.device  # --devices and --shard divide the time
        return (
            f"{self.rows:,} rows, about {self.tokens:,} tokens (from {self.sampled_rows:,} sampled rows), "
            f"{self.output_bytes / 1e6:,.1f} MB to {self.output}, about {self.seconds:,.0f} s on {where} "
            f"at {self.tokens_per_second:,.0f} tokens/s; nothing was written"
        )


def estimate(plan: EmbedPlan, encoder: "Encoder") -> Estimate:
    """Sample the corpus, time the model on part of the sample, and scale both to all rows."""
    plan.corpus.log_text_column()
    chunks = _sample(plan)
    encoder.measure_for(plan.text_bytes)

    def tokenizer_for(instruction: str | None) -> TextTokenizer:
        return encoder.tokenizer(instruction or plan.options.instruction, plan.options.prompt_name)

    tokenizer = ChunkTokenizer(tokenizer_for, options=plan.options, earlier=plan.earlier_vectors())
    tokenized = [tokenizer(chunk) for chunk in chunks]
    texts = TokenizedTexts.concatenated([tokenizer_for(None)([]), *(one.texts for one in tokenized)])
    rows, made = (sum(chunk.kept.num_rows for chunk in of) for of in (chunks, [one.chunk for one in tokenized]))
    tokens = round(len(texts.ids) / max(rows, 1) * plan.corpus.rows)
    shuffled = texts.select(np.random.default_rng(0).permutation(len(texts)))
    groups = [
        shuffled.select(np.arange(begin, min(begin + TRIAL_ROWS, len(texts))))
        for begin in range(0, len(texts), TRIAL_ROWS)
    ]
    if groups:  # not timed: the first forward pass allocates and warms up, and checks a quantized model's vectors
        encoder.encode_tokens(groups[0] if plan.settings.quantize is None else shuffled.sample(COMPARED))
    tried, started = 0, time.perf_counter()
    for group in groups:
        encoder.encode_tokens(group)
        tried += len(group.ids)
        if time.perf_counter() - started > TRIAL_SECONDS:
            break
    rate = tried / (time.perf_counter() - started)
    return Estimate(
        rows=plan.corpus.rows,
        tokens=tokens,
        sampled_rows=rows,
        output_bytes=plan.output_bytes * made // max(rows, 1),  # a row may become several passages
        seconds=tokens / rate if rate else 0.0,
        tokens_per_second=rate,
        output=plan.output_name,
        model=plan.settings.checkpoint.name,
        device=plan.settings.device,
    )


def _sample(plan: EmbedPlan) -> list[Chunk]:
    """Return chunks of up to `SAMPLE_ROWS` rows, or 1 MiB, at each of about `SAMPLE_PLACES` places; no row twice."""
    rows = plan.corpus.rows
    places = range(0, rows, max(rows // SAMPLE_PLACES, SAMPLE_ROWS))
    limits = ChunkLimits(rows=SAMPLE_ROWS, bytes=1 << 20)
    return [next(plan.corpus.chunks(limits, first_row=place)) for place in places]
