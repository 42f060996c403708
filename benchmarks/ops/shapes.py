"""The table of shapes to measure for each op, and the length patterns of a batch."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fastvec_kernels._accuracy import Direction

DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
TOKENS = 16_384  # per batch, as in FlashAttention's published figures


def _uniform(draw: random.Random) -> int:
    return draw.randint(1, 512)


def _long_tail(draw: random.Random) -> int:
    """Draw log-normal lengths: half of the texts are shorter than 100 tokens, one in a hundred is longer than 1,600."""
    return min(8192, max(1, round(math.exp(draw.gauss(math.log(100), 1.2)))))


def _bimodal(draw: random.Random) -> int:
    """Draw the length of a query or a passage, with equal probability."""
    return draw.randint(8, 32) if draw.random() < 0.5 else draw.randint(384, 640)


def _short(draw: random.Random) -> int:
    return draw.randint(16, 128)


RANDOM_PATTERNS: dict[str, Callable[[random.Random], int]] = {
    "short": _short,
    "uniform": _uniform,
    "long-tail": _long_tail,
    "bimodal": _bimodal,
}
PATTERNS = ("32", "128", "512", "2048", "8192", *RANDOM_PATTERNS)


def make_lengths(pattern: str, tokens: int, *, seed: int = 0) -> tuple[int, ...]:
    """Return lengths that sum to `tokens`: constant, or drawn from one of RANDOM_PATTERNS; the last is cut to fit."""
    if pattern.isdecimal():
        return cut_to([int(pattern)] * -(-tokens // int(pattern)), tokens)
    draw, lengths = random.Random(seed), [0]
    while sum(lengths) < tokens:
        lengths.append(RANDOM_PATTERNS[pattern](draw))
    return cut_to(lengths[1:], tokens)


def read_lengths(path: Path, tokens: int, *, seed: int = 0) -> tuple[int, ...]:
    """Return a batch of up to `tokens` tokens, drawn from a file of lengths with one integer per line."""
    lengths = [int(line) for line in path.read_text().split() if int(line) > 0]
    random.Random(seed).shuffle(lengths)
    return cut_to(lengths, tokens)


def cut_to(lengths: list[int], tokens: int) -> tuple[int, ...]:
    """Return the first lengths, up to a sum of `tokens`; the last is cut to fit."""
    kept, total = [], 0
    for length in lengths:
        if total == tokens:
            break
        kept.append(min(length, tokens - total))
        total += kept[-1]
    return tuple(kept)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One shape of an op; fields that the op does not use are 0 or empty."""

    group: str  # shapes of a group are in one plot
    name: str
    tokens: int = TOKENS
    pattern: str = "uniform"
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    width: int = 0  # hidden size, or half the width of a gate-up product
    hidden: int = 0  # if `width` is that of a gate-up product, the hidden size
    variant: str = ""
    given: tuple[int, ...] = ()  # lengths to use instead of the pattern's

    @property
    def lengths(self) -> tuple[int, ...]:
        return self.given or make_lengths(self.pattern, self.tokens)


def _attention_shapes() -> list[Shape]:
    heads = {128: ((32, 8), (16, 16)), 64: ((32, 8), (16, 16)), 256: ((16, 8), (8, 8))}
    return [
        Shape(
            group=f"d{head_dim} {of_queries}/{of_keys}",
            name=f"d{head_dim} {of_queries}/{of_keys} {pattern}",
            pattern=pattern,
            head_dim=head_dim,
            heads=of_queries,
            kv_heads=of_keys,
        )
        for head_dim, ratios in heads.items()
        for of_queries, of_keys in ratios
        for pattern in PATTERNS
    ]


def _wide_shapes(variants: tuple[str, ...], widths: tuple[int, ...]) -> list[Shape]:
    return [
        Shape(group=variant, name=f"{variant} {width}", width=width, variant=variant)
        for variant in variants
        for width in widths
    ]


def _pooling_shapes() -> list[Shape]:
    """Return shapes with the hidden sizes of Qwen3-0.6B and Llama-8B."""
    return [
        Shape(group=mode, name=f"{mode} {width} {pattern}", variant=mode, width=width, pattern=pattern)
        for mode, patterns in (("mean", ("32", "512", "8192", "short", "long-tail")), ("last", ("512",)))
        for width in (1024, 4096)
        for pattern in patterns
    ]


def _rope_shapes() -> list[Shape]:
    """Return shapes of three variants: Qwen3 normalizes q and k, Qwen2 adds a bias, Llama does neither."""
    return [
        Shape(
            group=variant,
            name=f"{variant} d{head_dim} {heads}/{kv_heads}",
            variant=variant,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
        )
        for variant in ("plain", "norm", "bias")
        for head_dim, heads, kv_heads in ((128, 16, 8), (128, 32, 8), (64, 32, 8))
    ]


def _rope_attention_shapes() -> list[Shape]:
    """Return shapes of short sequences, with the heads of Qwen3-0.6B, Qwen3-8B and Llama-1B."""
    return [
        Shape(
            group=f"{variant} d{head_dim} {heads}/{kv_heads}",
            name=f"{variant} d{head_dim} {heads}/{kv_heads} {pattern}",
            pattern=pattern,
            variant=variant,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
        )
        for variant, head_dim, heads, kv_heads in (("norm", 128, 16, 8), ("norm", 128, 32, 8), ("plain", 64, 32, 8))
        for pattern in ("20", "32", "64", "128", "short")
    ]


SHAPES: dict[str, list[Shape]] = {
    "attention": _attention_shapes(),
    "pooling": _pooling_shapes(),
    "rms_norm": _wide_shapes(("plain", "add"), (1024, 2048, 4096)),
    "rope": _rope_shapes(),
    "rope_attention": _rope_attention_shapes(),
    "swiglu": _wide_shapes(("swiglu", "geglu"), (3072, 14_336)),
    "gated_linear": [
        Shape(group="swiglu", name=f"swiglu {hidden}, {width}", hidden=hidden, width=width, tokens=tokens)
        for hidden, width, tokens in ((1024, 3072, 32_768), (2048, 6144, 32_768), (4096, 14_336, 16_384))
    ],
    "dropout": _wide_shapes(("dropout",), (1024, 4096, 14_336)),
    "quantize": _wide_shapes(("e4m3",), (1024, 4096, 14_336)),
}
# Shapes that a machine without a GPU checks in Triton's interpreter.
SMALL_SHAPES: dict[str, list[Shape]] = {
    "attention": [
        Shape(group="small", name="d32 4/2 short", tokens=150, pattern="short", heads=4, kv_heads=2, head_dim=32)
    ],
    "pooling": [Shape(group="small", name="mean 100 short", tokens=150, pattern="short", width=100, variant="mean")],
    "rms_norm": [
        Shape(group="small", name=f"{variant} 100", tokens=20, width=100, variant=variant)
        for variant in ("plain", "add")
    ],
    "rope": [
        Shape(group="small", name=f"{variant} d32 4/2", tokens=20, heads=4, kv_heads=2, head_dim=32, variant=variant)
        for variant in ("plain", "norm", "bias")
    ],
    "rope_attention": [
        Shape(
            group="small",
            name="norm d32 4/2 short",
            tokens=150,
            pattern="short",
            heads=4,
            kv_heads=2,
            head_dim=32,
            variant="norm",
        )
    ],
    "swiglu": [
        Shape(group="small", name=f"{variant} 100", tokens=20, width=100, variant=variant)
        for variant in ("swiglu", "geglu")
    ],
    "gated_linear": [Shape(group="small", name="swiglu 64, 100", tokens=20, hidden=64, width=100)],
    "dropout": [Shape(group="small", name="dropout 101", tokens=20, width=101, variant="dropout")],
    "quantize": [Shape(group="small", name="e4m3 100", tokens=20, width=100, variant="e4m3")],
}


def with_real_lengths(shapes: list[Shape], path: Path) -> list[Shape]:
    """Return one shape of each group, with lengths from a file instead of a pattern."""
    given = read_lengths(path, TOKENS)
    groups = {shape.group: shape for shape in shapes}.values()
    return [replace(shape, name=f"{shape.group} {path.stem}", pattern=path.stem, given=given) for shape in groups]
