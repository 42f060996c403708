"""Computes what a job on GPUs takes: GPU-hours, wall time, disk, and the CPU cores that feed a GPU.

The rate of a GPU is arithmetic, not a measurement: the products of the model's weights at `PRODUCTS`, those of
attention at `ATTENTION`, and what kernels move between products at `COPY`, one after another.
"""

from dataclasses import dataclass

from benchmarks.engines.models import MODEL_SHAPES, ModelShape
from benchmarks.scaling.processes import TEXT_TOKENS, Timing
from fastvec.embedding.plan import BITS

# Assumed of an H200: four fifths of what a bf16 product of 8192³ and a copy reach there, 0.78 PFLOP/s and 4.3 TB/s; and
# half of that rate of products for attention, whose sequences are short.
PRODUCTS, ATTENTION, COPY = 620e12, 310e12, 3.4e12  # FLOP/s, FLOP/s, bytes/s
DOCUMENTS = 1_000_000_000
GPUS = (1, 8, 64)


def layer_bytes(shape: ModelShape) -> int:
    """Return the bytes that a layer's kernels move for a token in bf16, without its products of weights.

    Norms and the residual; RoPE with head norms; attention; the gated activation. See docs/performance.md.
    """
    heads = (shape.heads + shape.kv_heads) * shape.head
    return 12 * shape.hidden + (4 * heads + 512) + 4 * heads + 6 * shape.intermediate


def token_seconds(shape: ModelShape, length: int) -> float:
    """Return the seconds that a GPU takes for a token of a text of `length` tokens."""
    products = 2.0 * shape.parameters
    attention = shape.flops([length]) / length - products
    return products / PRODUCTS + attention / ATTENTION + shape.layers * layer_bytes(shape) / COPY


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """A job of DOCUMENTS texts of TEXT_TOKENS tokens with one model."""

    model: str
    gpu_rate: float  # tokens a second, computed
    gpu_hours: float
    days: dict[int, float]  # by the number of GPUs
    cpu_seconds: float  # of a million tokens, measured
    cores: float  # that feed one GPU
    text_rate: float  # bytes that a GPU reads in a second
    vector_rate: float  # bytes of float16 vectors that it writes in a second
    vector_bytes: dict[str, float]  # of all documents, by dtype

    def __str__(self) -> str:
        days = ", ".join(f"{days:,.1f} days on {gpus}" for gpus, days in self.days.items())
        disk = ", ".join(f"{size / 1e12:.2f} TB in {dtype}" for dtype, size in self.vector_bytes.items())
        return (
            f"{self.model}: {self.gpu_rate:,.0f} tokens/s on a GPU, {self.gpu_hours:,.0f} GPU hours ({days}); "
            f"vectors of {disk}\n"
            f"    a GPU needs {self.cores:.2f} cores of this CPU ({self.cpu_seconds:.2f} s for a million tokens), "
            f"{self.text_rate / 1e6:.1f} MB/s of text, and writes {self.vector_rate / 1e6:.1f} MB/s in float16"
        )


def cost_of(model: str, cpu: Timing, text_bytes: float) -> Cost:
    """Return the cost with a model; `cpu` is a job in which a token takes the CPU what it takes it beside a GPU.

    `text_bytes` are those of a text.
    """
    shape = MODEL_SHAPES[model]
    seconds = token_seconds(shape, TEXT_TOKENS)
    documents = 1 / (seconds * TEXT_TOKENS)  # a second and GPU
    hours = DOCUMENTS * TEXT_TOKENS * seconds / 3600
    return Cost(
        model=model,
        gpu_rate=1 / seconds,
        gpu_hours=hours,
        days={gpus: hours / gpus / 24 for gpus in GPUS},
        cpu_seconds=cpu.cpu / cpu.tokens * 1e6,
        cores=cpu.cpu / cpu.tokens / seconds,
        text_rate=documents * text_bytes,
        vector_rate=documents * row_bytes(shape, "float16"),
        vector_bytes={dtype: DOCUMENTS * row_bytes(shape, dtype) for dtype in BITS},
    )


def row_bytes(shape: ModelShape, dtype: str) -> float:
    """Return the bytes of a vector as wide as the model, and of its row number."""
    return shape.hidden * BITS[dtype] / 8 + 8
