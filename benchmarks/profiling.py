"""Profiles the forward pass of fastvec: which kernels take the device's time, and how long the device is idle.

    PYTHONPATH=.:kernels python -m benchmarks.profiling [--shape 0.6B] [--length 128] [--budget 32768]
        [--quantize fp8] [--trace FILE.json.gz] [--append FILE]

A few forwards follow each other, with random weights, from token ids to vectors. The device is idle where no kernel
runs between the first one's start and the last one's end. On a CPU, ops take the place of kernels, with the time that
they do not spend in other ops. "Products" are the matrix products of the linear layers. The profiler slows the host,
so the time without it is measured too. A trace is of a second run, in which it also records the host.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.engines.device_timing import time_alone, time_in_a_row, wait
from benchmarks.engines.engines import device
from benchmarks.engines.implementations import packed_batches
from benchmarks.engines.random_decoder import (
    DECODERS,
    DTYPES,
    device_name,
    fp8_decoder,
    fused_decoder,
    fused_vectors,
    random_model,
    random_texts,
)
from benchmarks.forward import lengths_of
from benchmarks.ops.shapes import RANDOM_PATTERNS
from benchmarks.reporting.results import append_option, append_row, environment
from fastvec.decoders.kernel_check import replaced_ops
from fastvec.settings import runs_fp8

FORWARDS = 5
SHOWN = 25  # kernels in the table
LONGEST_NAME = 72
# Names of cuBLAS's and CUTLASS's products, and of PyTorch's ops on a CPU. Attention is neither, whoever computes it.
PRODUCT = re.compile(
    r"gemm|nvjet|xmma|cutlass|splitk|cublas|gated_linear|^aten::(mm|addmm_?|_scaled_mm)$|mkldnn_linear", re.I
)
ATTENTION = re.compile(r"fmha|flash|attention", re.I)


@dataclass(frozen=True, slots=True)
class Interval:
    """A kernel or op that ran: microseconds, `own` without the ops inside it."""

    name: str
    start: float
    end: float
    own: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """All runs of a kernel; calls and time are those of one forward."""

    name: str
    calls: float
    ms: float
    share: float  # of the time of all kernels

    def __str__(self) -> str:
        return f"{short_name(self.name):{LONGEST_NAME}} {self.calls:7.1f} {self.ms:9.3f} ms {self.share:6.1%}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A profile. Microseconds a token add up to `us_per_token_profiled`."""

    shape: str
    lengths: str
    budget: int
    quantize: str | None
    dtype: str
    tokens: int
    us_per_token: float  # without the profiler
    us_per_token_profiled: float
    products: float
    rest: float
    idle: float
    idle_share: float
    torch_ops: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.us_per_token:.3f} µs/token; profiled {self.us_per_token_profiled:.3f}: "
            f"products {self.products:.3f}, rest {self.rest:.3f}, idle {self.idle:.3f} ({self.idle_share:.1%})"
        )


@click.command()
@click.option("--shape", default="0.6B", show_default=True, type=click.Choice(list(DECODERS)))
@click.option(
    "--length", default="128", show_default=True, help=f"Tokens of each text, or {', '.join(RANDOM_PATTERNS)}."
)
@click.option("--budget", default=32_768, show_default=True, help="Tokens of a forward.")
@click.option("--quantize", type=click.Choice(["fp8"]))
@click.option("--trace", type=click.Path(dir_okay=False, path_type=Path), help="File for a gzipped Chrome trace.")
@append_option
def main(shape: str, length: str, budget: int, quantize: str | None, trace: Path | None, append: Path | None) -> None:
    if quantize is not None and not runs_fp8(device()):
        raise click.UsageError("--quantize fp8 needs a GPU with fp8")
    if length not in RANDOM_PATTERNS and not (length.isdecimal() and int(length) > 0):
        raise click.UsageError(f"--length {length} is neither a number nor one of {', '.join(RANDOM_PATTERNS)}")
    print(", ".join(f"{name} {value}" for name, value in environment().items() if value))
    lengths = lengths_of(length, budget, 0)
    with torch.inference_mode():
        forward = forward_of(shape, lengths, quantize)
        plain = unprofiled_seconds(forward)
        intervals = profiled(forward)
        if trace is not None:
            save_trace(forward, trace)
    kernels, times = kernels_of(intervals, FORWARDS), times_of(intervals)
    per_token = {name: us / FORWARDS / sum(lengths) for name, us in times.items()}
    row = Row(
        shape=shape,
        lengths=length,
        budget=budget,
        quantize=quantize,
        dtype=DTYPES[device()],
        tokens=sum(lengths),
        us_per_token=plain * 1e6 / sum(lengths),
        us_per_token_profiled=sum(per_token.values()),
        **per_token,
        idle_share=times["idle"] / sum(times.values()),
        torch_ops=replaced_ops(device()),
    )
    print("\n".join(table(kernels)))
    print(row)
    if append is not None:
        profiled_row = {"benchmark": "profiling", "device": device_name(), **asdict(row)}
        append_row(append, profiled_row)
        names = ("benchmark", "device", "shape", "lengths", "budget", "quantize")
        for kernel in kernels:
            append_row(append, {**{name: profiled_row[name] for name in names}, **asdict(kernel)})


def forward_of(shape: str, lengths: Sequence[int], quantize: str | None) -> Callable[[], torch.Tensor]:
    decoder, positions = DECODERS[shape], max(lengths)
    model = random_model(decoder, positions=positions, dtype=DTYPES[device()], device=device())
    fused = fused_decoder(decoder, model, positions=positions, device=device())
    if quantize is not None:
        fused = fp8_decoder(decoder, fused, positions=positions, device=device())
    (packed,) = packed_batches(random_texts(lengths, decoder.vocabulary), sum(lengths), device=device())
    return partial(fused_vectors, fused, packed)


def unprofiled_seconds(forward: Callable[[], torch.Tensor]) -> float:
    if not forward().isfinite().all():
        raise click.ClickException("the vectors are not finite")
    seconds = 0.5 if device() == "cuda" else 0.05
    return time_in_a_row(forward, once=max(time_alone([forward], seconds=seconds)), seconds=seconds)


def run(forward: Callable[[], torch.Tensor], activities: Sequence[ProfilerActivity]) -> Any:
    wait()
    with profile(activities=activities, acc_events=True) as found:
        for _ in range(FORWARDS):
            forward()
        wait()
    return found


def profiled(forward: Callable[[], torch.Tensor]) -> list[Interval]:
    """Profile the device alone: recording the host's ops too would slow the host down further."""
    on_gpu = device() == "cuda"
    found = run(forward, [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])
    intervals = [
        Interval(
            event.name,
            event.time_range.start,
            event.time_range.end,
            event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total,
        )
        for event in found.events()
        if event.device_type.name == ("CUDA" if on_gpu else "CPU")
    ]
    if not intervals:
        raise click.ClickException("the profiler recorded no kernels")
    return intervals


def times_of(intervals: Sequence[Interval]) -> dict[str, float]:
    """Return the microseconds of products, of the rest, and in which nothing ran; their sum is from start to end."""
    products = sum(one.own for one in intervals if is_product(one.name))
    busy, until = 0.0, float("-inf")
    for one in sorted(intervals, key=lambda one: one.start):
        busy += max(0.0, one.end - max(one.start, until))  # intervals overlap on several streams, and ops contain ops
        until = max(until, one.end)
    span = until - min(one.start for one in intervals)
    return {"products": products, "rest": busy - products, "idle": span - busy}


def is_product(name: str) -> bool:
    return PRODUCT.search(name) is not None and ATTENTION.search(name) is None


def kernels_of(intervals: Sequence[Interval], forwards: int) -> list[Kernel]:
    """Return the kernels, the one with the most time first."""
    total = sum(one.own for one in intervals)
    by_name = itertools.groupby(sorted(intervals, key=lambda one: one.name), key=lambda one: one.name)
    found = []
    for name, group in by_name:
        times = [one.own for one in group]
        found.append(
            Kernel(name=name, calls=len(times) / forwards, ms=sum(times) / forwards / 1e3, share=sum(times) / total)
        )
    return sorted(found, key=lambda kernel: -kernel.ms)


def table(kernels: Sequence[Kernel]) -> list[str]:
    shown, others = kernels[:SHOWN], kernels[SHOWN:]
    lines = [f"{'kernel':{LONGEST_NAME}} {'calls':>7} {'a forward':>12} {'share':>6}", *map(str, shown)]
    if others:
        calls, ms, share = (sum(values) for values in zip(*((x.calls, x.ms, x.share) for x in others), strict=True))
        lines.append(str(Kernel(name=f"{len(others)} others", calls=calls, ms=ms, share=share)))
    return lines


def short_name(name: str) -> str:
    """Return a kernel's name without its namespaces and the end of a long list of template arguments."""
    if not name.startswith("aten::"):
        name = re.sub(r"^void |\(anonymous namespace\)::|\w+::", "", name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def save_trace(forward: Callable[[], torch.Tensor], path: Path) -> None:
    on_gpu = device() == "cuda"
    found = run(forward, [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])])
    found.export_chrome_trace(str(path if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")))


if __name__ == "__main__":
    main()
