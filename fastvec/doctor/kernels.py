"""Compare every kernel with its reference on this machine's GPU, for a few shapes, as loading a model does.

Loading a model checks the kernels that it calls; here are also those of other models: heads of 64 and 128, causal and
windowed attention, GeGLU, fp8. `gated_linear` is off, and backward passes are not checked.

Shapes: T packed tokens, H = 4 query heads and KV = 2 key heads.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from fastvec.decoders.kernel_check import LENGTHS, SHORT_LENGTHS, kernel_check
from fastvec.doctor.report import Outcome, outcome
from fastvec.settings import resolve_dtype, runs_fp8
from fastvec_kernels import (
    AttentionPlan,
    add_rms_norm,
    attention,
    dropout,
    geglu,
    pool,
    quantize_rows,
    rms_norm,
    rope,
    rope_attention,
    swiglu,
    torch_ops,
)

HEADS, KV_HEADS = 4, 2
HEAD_SIZES = (64, 128)
WIDTH = 1024

Step = Callable[[str], None]
Case = tuple[str, Callable[[], object]]


def check_kernels(step: Step) -> Outcome:
    if not torch.cuda.is_available():
        return outcome("none: without a GPU, PyTorch's operations take their place")
    return compare_kernels(step, torch.device("cuda"), getattr(torch, resolve_dtype("cuda")), fp8=runs_fp8("cuda"))


def compare_kernels(step: Step, device: torch.device, dtype: torch.dtype, *, fp8: bool) -> Outcome:
    """Compare the kernels with their references; `step` is told the name of each op before it runs.

    Raises ModelError if a kernel stops the GPU.
    """
    names = []
    with torch.inference_mode(), kernel_check():
        for name, run in _cases(device, dtype, fp8=fp8):
            step(name)
            names += [name] * (name not in names)
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()  # so that a fault is that of this op
    replaced = torch_ops()
    agree = [name for name in names if name not in replaced]
    notes = [f"{op} runs on PyTorch's operations, which is slower: {why}" for op, why in sorted(replaced.items())]
    found = f"{', '.join(agree) or 'none'} agree with their references in {str(dtype).removeprefix('torch.')}"
    return outcome(found, notes=notes)


def _cases(device: torch.device, dtype: torch.dtype, *, fp8: bool) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    tokens, ends = sum(LENGTHS), torch.tensor(LENGTHS).cumsum(0)
    x, residual, weight = random(tokens, WIDTH), random(tokens, WIDTH), random(WIDTH)
    yield "rms_norm", partial(rms_norm, x, weight, 1e-6)
    yield "rms_norm", partial(add_rms_norm, x, residual, weight, 1e-6)
    yield "swiglu", partial(swiglu, x)
    yield "swiglu", partial(geglu, x)
    spans = torch.stack([ends - torch.tensor(LENGTHS), ends], dim=1)
    yield "pool", partial(pool, x, spans, "mean", residual=residual, weight=weight, normalize=True)
    yield "pool", partial(pool, x, spans, "last", normalize=True)
    seen = torch.stack([torch.arange(tokens) % 7, torch.arange(tokens)], dim=1).to(device)
    yield "dropout", partial(dropout, x, seen, p=0.1, seed=1)
    if fp8:
        yield "quantize_rows", partial(quantize_rows, x)
    for size in HEAD_SIZES:
        yield from _attention_cases(random, size, device)


def _attention_cases(random: Callable[..., torch.Tensor], size: int, device: torch.device) -> Iterator[Case]:
    tokens, plan, scale = sum(LENGTHS), AttentionPlan.build(LENGTHS, device), size**-0.5
    q, k, v = (random(tokens, heads, size) for heads in (HEADS, KV_HEADS, KV_HEADS))
    for causal, window in ((False, None), (True, None), (True, 100)):
        yield "attention", partial(attention, q, k, v, plan, scale=scale, causal=causal, window=window)
    frequencies = 10_000.0 ** (-2 * torch.arange(size // 2) / size)
    angles = (torch.arange(tokens)[:, None] * frequencies).to(device)
    qkv, norm = random(tokens, (HEADS + 2 * KV_HEADS) * size), random(size)
    heads: dict[str, Any] = {"heads": HEADS, "kv_heads": KV_HEADS, "q_weight": norm, "k_weight": norm}
    yield "rope", partial(rope, qkv, angles.cos(), angles.sin(), **heads)
    few, short = sum(SHORT_LENGTHS), AttentionPlan.build(SHORT_LENGTHS, device)
    inputs = qkv[:few], angles[:few].cos(), angles[:few].sin(), short
    for causal in (False, True):
        yield "rope_attention", partial(rope_attention, *inputs, **heads, scale=scale, causal=causal)
