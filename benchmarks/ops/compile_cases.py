"""The cases that the ahead-of-time gate compiles: calls that together launch every shipped kernel configuration.

Tensors are on the CPU and uninitialized. Sizes are those of a real batch, because Triton specializes on arguments that
are divisible by 16; T is odd.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch

from fastvec_kernels import (
    Activation,
    AttentionPlan,
    add_rms_norm,
    add_rms_norm_fp8,
    attention,
    dropout,
    gated_fp8,
    geglu,
    pool,
    quantize_rows,
    rms_norm,
    rms_norm_fp8,
    rope,
    rope_attention,
    swiglu,
)
from fastvec_kernels.attention.configs import TABLES, override_tiles
from fastvec_kernels.attention.parts import Tile
from fastvec_kernels.gated_linear import TILES, gated_product
from fastvec_kernels.gated_linear import Tile as ProductTile

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SHORT_LENGTHS = (20, 50, 101)  # one in each length class
LENGTHS = (20, 50, 100, 300, 1501)  # and longer ones
SEED = 2**62 + 1  # as those of training: of 64 bits, and odd


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    op: str
    name: str
    call: Callable[[], None]
    quick: bool = False  # part of --quick, the minimal set of cases that covers each kernel
    arch: str | None = None  # the only architecture to compile it for; None: all


def empty(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, requires_grad=dtype.is_floating_point)


def differentiate(outputs: torch.Tensor | tuple[torch.Tensor, ...], *inputs: torch.Tensor) -> None:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.autograd.grad(outputs, inputs, tuple(torch.empty_like(x) for x in outputs))


def run_attention(
    head_dim: int,
    *,
    heads: tuple[int, int] = (32, 8),
    dtype: torch.dtype = BF16,
    value_dim: int | None = None,
    sinks: bool = False,
    lengths: tuple[int, ...] = LENGTHS,
    backward: bool = True,
    **options: Any,
) -> None:
    plan = AttentionPlan.build(lengths)
    q = empty(plan.tokens, heads[0], head_dim, dtype=dtype)
    k = empty(plan.tokens, heads[1], head_dim, dtype=dtype)
    v = empty(plan.tokens, heads[1], value_dim or head_dim, dtype=dtype)
    if sinks:
        options["sinks"] = empty(heads[0], dtype=dtype)
    options |= {"seed": SEED} if "dropout_p" in options else {}
    with torch.set_grad_enabled(backward):
        o = attention(q, k, v, plan, scale=head_dim**-0.5, **options)
    if backward:
        differentiate(o, q, k, v, *([options["sinks"]] if sinks else []))


def run_rope_attention(
    head_dim: int,
    heads: tuple[int, int] = (32, 8),
    *,
    lengths: tuple[int, ...] = SHORT_LENGTHS,
    norm: bool = False,
    bias: bool = False,
    sinks: bool = False,
    **options: Any,
) -> None:
    plan, width = AttentionPlan.build(lengths), (heads[0] + 2 * heads[1]) * head_dim
    weight, angles = torch.empty(head_dim, dtype=BF16) if norm else None, torch.empty(plan.tokens, head_dim // 2)
    inputs = (torch.empty(plan.tokens, width, dtype=BF16), angles, angles, plan)
    rope_attention(
        *inputs,
        heads=heads[0],
        kv_heads=heads[1],
        q_weight=weight,
        k_weight=weight,
        bias=torch.empty(width, dtype=BF16) if bias else None,
        scale=head_dim**-0.5,
        sinks=torch.empty(heads[0], dtype=BF16) if sinks else None,
        **options,
    )


SOFTCAP: dict[str, Any] = {"window": 64, "softcap": 50.0}
SINKS: dict[str, Any] = {"window": 64, "sinks": True}
# What families combine; none has both a softcap and sinks. Each runs bidirectional or causal, and trains with dropout.
# The heads count too: at 256, a tile that fits 4 query heads per key head spilled with 2.
COMBINED: tuple[tuple[int, tuple[int, int], dict[str, Any]], ...] = (
    (64, (64, 8), SINKS),  # gpt-oss
    (128, (32, 4), SINKS),  # Flint; Granite SWA has 20/4
    (128, (32, 16), SOFTCAP),  # Gemma 2 27B
    (256, (16, 8), SOFTCAP),  # Gemma 2 9B, VaultGemma
)


def attention_cases() -> list[Case]:
    cases = []

    def add(name: str, head_dim: int, *, quick: bool = False, **options: Any) -> None:
        call = partial(run_attention, head_dim, **options)
        cases.append(Case(op="attention", name=f"d{head_dim} {name}", call=call, quick=quick))

    for head_dim in (64, 128, 256):
        add("bf16", head_dim, quick=head_dim == 128)
        add("bf16 window", head_dim, window=64)
        add("bf16 dropout", head_dim, dropout_p=0.1)
    for head_dim, heads, masks in COMBINED:
        name = f"bf16 {heads[0]}/{heads[1]} {' '.join(masks)}"
        add(name, head_dim, heads=heads, **masks, backward=False)
        add(f"{name} causal", head_dim, heads=heads, **masks, causal=True)
        add(f"{name} causal dropout", head_dim, heads=heads, **masks, causal=True, dropout_p=0.1)
    for head_dim in (128, 256):
        add("bf16 causal", head_dim, causal=True)
    # DeepSeek and others with latent attention; on sm_80, backward_keys would spill up to 16 bytes for them
    latent: dict[str, Any] = {"value_dim": 128, "backward": False}
    add("bf16 values of 128", 192, heads=(16, 16), **latent)
    add("bf16 values of 128, causal window sinks", 192, heads=(64, 4), causal=True, **SINKS, **latent)
    for head_dim in (32, 80, 96):
        add("bf16", head_dim, backward=head_dim == 96)  # with 96, 128 columns are computed as with 80
    add("bf16 16/16", 128, heads=(16, 16))
    add("fp32", 128, dtype=FP32)
    add("bf16 window dropout", 128, window=64, dropout_p=0.1)
    return cases


def run_candidate(pass_name: str, tile: Tile, head_dim: int, dtype: torch.dtype) -> None:
    """Run attention with `tile` for one pass, on sequences that use only this pass."""
    direction, limit = pass_name.split("_")
    lengths = (int(limit),) if limit.isdecimal() else (LENGTHS[-1],)
    with override_tiles(**{pass_name: (tile,)}):
        if direction == "rotary":
            run_rope_attention(head_dim, lengths=lengths, norm=True)
            return
        run_attention(head_dim, dtype=dtype, lengths=lengths, backward=direction == "backward")


def candidate_cases() -> list[Case]:
    """Return a case for each tile in the configuration tables that is not its cell's first choice."""
    return [
        Case(
            op="rope_attention" if pass_name.startswith("rotary") else "attention",
            name=f"d{widest} {'fp32' if 'float32' in row else 'bf16'}, candidate for {pass_name}",
            call=partial(run_candidate, pass_name, tile, widest, FP32 if "float32" in row else BF16),
            arch=row.split()[0],
        )
        for row, passes in TABLES.items()
        for pass_name, cells in passes.items()
        for widest, tiles in cells.items()
        for tile in tiles[1:]
    ]


def run_pool(
    width: int,
    mode: Any,
    *,
    dtype: torch.dtype = BF16,
    norm: bool = True,
    residual: bool = True,
    training: bool = False,
    dims: int | None = None,
    out_dtype: torch.dtype = FP32,
) -> None:
    ends = list(itertools.accumulate(LENGTHS))
    spans = torch.tensor(list(zip([0, *ends[:-1]], ends, strict=True)))
    states = [empty(ends[-1], width, dtype=dtype) for _ in range(2 if residual else 1)]
    weight = empty(width, dtype=dtype) if norm else None
    with torch.set_grad_enabled(training):
        y = pool(
            states[0],
            spans,
            mode,
            residual=states[1] if residual else None,
            weight=weight,
            dims=dims,
            normalize=True,
            out_dtype=out_dtype,
            ranges=torch.empty(dims or width) if out_dtype == torch.int8 else None,
        )
    if training:
        differentiate(y, *states, *([] if weight is None else [weight]))


def pooling_cases() -> list[Case]:
    calls: list[tuple[str, dict[str, Any]]] = [
        *((f"{width} {mode}", {"width": width, "mode": mode}) for width in (1024, 4096) for mode in ("mean", "last")),
        ("1024 weighted_mean", {"width": 1024, "mode": "weighted_mean"}),
        ("896 mean", {"width": 896, "mode": "mean"}),
        ("8192 mean", {"width": 8192, "mode": "mean"}),
        ("1024 mean fp32", {"width": 1024, "mode": "mean", "dtype": FP32}),
        ("1024 mean, no norm, no residual", {"width": 1024, "mode": "mean", "norm": False, "residual": False}),
        ("1024 mean, training", {"width": 1024, "mode": "mean", "training": True}),
        ("4096 last, training", {"width": 4096, "mode": "last", "training": True}),
        ("1024 mean to 256 float16", {"width": 1024, "mode": "mean", "dims": 256, "out_dtype": FP16}),
        ("1024 mean to int8", {"width": 1024, "mode": "mean", "out_dtype": torch.int8}),
        ("1024 mean to binary", {"width": 1024, "mode": "mean", "out_dtype": torch.uint8}),
    ]
    quick = ("1024 mean", "1024 mean, training")
    return [
        Case(op="pooling", name=name, call=partial(run_pool, **options), quick=name in quick) for name, options in calls
    ]


def run_rms_norm(width: int, dtype: torch.dtype) -> None:
    x, residual, weight = (empty(*shape, dtype=dtype) for shape in ((2049, width), (2049, width), (width,)))
    differentiate(rms_norm(x, weight, 1e-6), x, weight)
    differentiate(add_rms_norm(x, residual, weight, 1e-6), x, residual, weight)


def run_rope(head_dim: int, dtype: torch.dtype, heads: int, kv_heads: int, *, norm: bool, bias: bool) -> None:
    width = (heads + 2 * kv_heads) * head_dim
    qkv, cos, sin = empty(2049, width, dtype=dtype), torch.empty(2049, head_dim // 2), torch.empty(2049, head_dim // 2)
    weights = [empty(head_dim, dtype=dtype) for _ in range(2)] if norm else [None, None]
    offset = empty(width, dtype=dtype) if bias else None
    outputs = rope(qkv, cos, sin, heads=heads, kv_heads=kv_heads, q_weight=weights[0], k_weight=weights[1], bias=offset)
    differentiate(outputs, *(x for x in (qkv, *weights, offset) if x is not None))


def run_swiglu(op: Callable[[torch.Tensor], torch.Tensor], width: int, dtype: torch.dtype) -> None:
    gate_up = empty(2049, 2 * width, dtype=dtype)
    differentiate(op(gate_up), gate_up)


# of Qwen3-0.6B, Qwen3-8B and EmbeddingGemma
GATED: tuple[tuple[int, int, Activation], ...] = (
    (1024, 3072, "silu"),
    (4096, 14_336, "silu"),
    (768, 1152, "gelu_tanh"),
)


def run_gated_linear(hidden: int, width: int, activation: Activation, tile: ProductTile) -> None:
    x, weight = torch.empty(2049, hidden, dtype=BF16), torch.empty(2 * width, hidden, dtype=BF16)
    gated_product(x, weight, activation, tile)


def run_dropout(width: int, dtype: torch.dtype) -> None:
    x = empty(2049, width, dtype=dtype)
    differentiate(dropout(x, torch.zeros(2049, 2, dtype=torch.int64), p=0.05, seed=2**62), x)


def run_quantize(width: int) -> None:
    x, weight = torch.empty(2049, width, dtype=BF16), torch.empty(width, dtype=BF16)
    gate_up = torch.empty(2049, 2 * width, dtype=BF16)
    quantize_rows(x)
    add_rms_norm_fp8(x, x, weight, 1e-6)
    rms_norm_fp8(x, weight, 1e-6)
    for activation in get_args(Activation):
        gated_fp8(gate_up, activation)


def wide_cases() -> list[Case]:
    cases = [
        Case(op="rms_norm", name=f"{width} {dtype}", call=partial(run_rms_norm, width, dtype), quick=width == 1024)
        for width, dtype in [*((width, BF16) for width in (128, 896, 1024, 2048, 4096, 8192)), (4096, FP32)]
    ]
    cases += [
        Case(
            op="rope",
            name=f"d{head_dim} {heads}/{kv} {dtype}{' norm' * norm}{' bias' * bias}",
            call=partial(run_rope, head_dim, dtype, heads, kv, norm=norm, bias=bias),
            quick=head_dim == 128,
        )
        for head_dim, heads, kv, dtype in ((128, 16, 8, BF16), (64, 32, 8, BF16), (80, 32, 32, BF16), (256, 4, 1, FP32))
        for norm, bias in ((False, False), (True, False), (False, True))
    ]
    cases += [
        Case(op="dropout", name=f"{width} {dtype}", call=partial(run_dropout, width, dtype), quick=width == 1024)
        for width, dtype in ((1024, BF16), (4096, BF16), (14_336, BF16), (4096, FP32))
    ]
    cases += [
        Case(op="quantize", name=f"{width}", call=partial(run_quantize, width), quick=width == 1024, arch=arch)
        for width in (1024, 3072, 4096, 14_336)
        for arch in ("sm_90", "sm_100")  # the architectures that multiply E4M3
    ]
    cases += [
        Case(
            op="gated_linear",
            name=f"{hidden}, {width} {activation}, {', '.join(map(str, tile))}",
            call=partial(run_gated_linear, hidden, width, activation, tile),
            quick=tile == tiles[0] and width == 3072,
            arch=arch,
        )
        for arch, tiles in TILES.items()
        for tile in tiles
        for hidden, width, activation in GATED
    ]
    return cases + [
        Case(
            op="swiglu",
            name=f"{op.__name__} {width} {dtype}",
            call=partial(run_swiglu, op, width, dtype),
            quick=width == 3072,
        )
        for op in (swiglu, geglu)
        for width, dtype in ((3072, BF16), (4864, BF16), (14_336, BF16), (3072, FP32))
    ]


def rope_attention_cases() -> list[Case]:
    """Return what families combine, with their heads."""
    kinds: tuple[tuple[str, int, tuple[int, int], dict[str, Any]], ...] = (
        ("norm", 128, (16, 8), {"norm": True}),  # Qwen3
        ("norm causal", 128, (32, 8), {"norm": True, "causal": True}),
        ("bias", 128, (12, 2), {"bias": True}),  # Qwen2
        ("plain", 128, (32, 8), {}),  # Llama
        ("window softcap causal", 128, (32, 16), {**SOFTCAP, "causal": True}),  # Gemma 2 27B
        ("window sinks causal", 128, (32, 4), {**SINKS, "causal": True}),  # Flint
        ("plain causal", 64, (32, 8), {"causal": True}),
        ("bias", 64, (14, 2), {"bias": True}),
        ("bias window sinks causal", 64, (64, 8), {**SINKS, "bias": True, "causal": True}),  # gpt-oss
    )
    cases = []
    for name, head_dim, heads, options in kinds:
        call = partial(run_rope_attention, head_dim, heads, **options)
        name = f"d{head_dim} {heads[0]}/{heads[1]} {name}"
        cases.append(Case(op="rope_attention", name=name, call=call, quick=name == "d128 16/8 norm"))
    return cases


def cases() -> list[Case]:
    return attention_cases() + rope_attention_cases() + candidate_cases() + pooling_cases() + wide_cases()
