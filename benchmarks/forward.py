"""Compares forward passes alone, without tokenizing and files: fastvec and transformers on the same random weights.

    PYTHONPATH=.:kernels python -m benchmarks.forward [--shape 0.6B] [--lengths "20 128 512 2048 long-tail"]
        [--budgets "4096 65536"] [--only fastvec --only "fastvec, fp8"] [--seconds S] [--append FILE]

A length is a number, for texts of that length that fill one batch, or a pattern of `ops.shapes`, for texts with as
many tokens as the largest budget. A row is a pass over all its texts in batches of at most `budget` tokens: packed by
fastvec, sorted by length and padded for transformers, where padding counts. Tokens and FLOPs are those of the texts.

"Device" and "host" are the milliseconds of a forward on the device, and until its call returns. Rates are those of
forwards that follow each other, which take the longer of the two. "% of peak" is useful FLOP/s as a share of the rate
of a square product, in bf16 on a GPU and in float32 on a CPU. "Memory" is the weights and what a pass needs beside
them. Each implementation first embeds a few texts: its rows fail if the vectors differ from those of transformers.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import click
import torch

from benchmarks.engines import race
from benchmarks.engines.device_timing import time_alone, time_in_a_row
from benchmarks.engines.engines import device
from benchmarks.engines.implementations import NAMES, Implementation, load_implementations
from benchmarks.engines.random_decoder import DECODERS, DTYPES, device_name, random_texts
from benchmarks.ops.shapes import RANDOM_PATTERNS, make_lengths
from benchmarks.reporting.results import append_option, append_row, environment, first_line
from fastvec.decoders.kernel_check import replaced_ops

LENGTHS = "20 128 512 2048 long-tail"
BUDGETS = {"cuda": "4096 8192 16384 32768 65536", "cpu": "256 1024"}
SECONDS_A_ROW = {"cuda": 0.3, "cpu": 0.05}
HEADER = (
    f"{'shape':5} {'implementation':18} {'lengths':9} {'budget':>6} {'tokens/s':>11} {'µs/token':>9} {'device':>10} "
    f"{'host':>10} {'TFLOP/s':>8} {'% of peak':>9} {'memory':>10} {'cosine':>7}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A pass of one implementation over some texts. `status` is ok, starts with FAILED, or says what is missing."""

    shape: str
    implementation: str
    lengths: str
    budget: int
    dtype: str
    texts: int
    tokens: int
    flops: float  # of a pass, useful
    ceiling: float  # FLOP/s of a square product
    status: str = "ok"
    forwards: int = 0  # in a pass
    seconds: float | None = None  # of a pass, when passes follow each other
    device_seconds: float | None = None  # of a forward
    host_seconds: float | None = None
    peak_memory: int | None = None  # bytes; None on a CPU
    cosine: float | None = None  # the least one with transformers' vectors
    torch_ops: tuple[str, ...] = ()  # `replaced_ops`

    @property
    def figures(self) -> dict[str, float]:
        if self.seconds is None:
            return {}
        rate = self.flops / self.seconds
        return {
            "tokens_per_s": self.tokens / self.seconds,
            "us_per_token": self.seconds / self.tokens * 1e6,
            "tflops": rate / 1e12,
            "share": rate / self.ceiling,
        }

    def __str__(self) -> str:
        start = f"{self.shape:5} {self.implementation:18} {self.lengths:9} {self.budget:6}"
        if self.seconds is None or self.device_seconds is None or self.host_seconds is None:
            return f"{start} {self.status}"
        found = self.figures
        memory = "" if self.peak_memory is None else f"{self.peak_memory / 2**20:,.0f} MiB"
        on_torch = f"  on PyTorch's operations: {', '.join(self.torch_ops)}" if self.torch_ops else ""
        return (
            f"{start} {found['tokens_per_s']:11,.0f} {found['us_per_token']:9.3f} {self.device_seconds * 1e3:7.2f} ms "
            f"{self.host_seconds * 1e3:7.2f} ms {found['tflops']:8.3f} {found['share']:9.0%} {memory:>10} "
            f"{self.cosine:7.4f}{on_torch}"
        )


def words(_context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Split the values of a repeated option at spaces and commas; each word is a number, or a pattern of lengths."""
    found = tuple(word for value in values for word in value.replace(",", " ").split())
    names = RANDOM_PATTERNS if option.name == "lengths" else {}
    for word in found:
        if word not in names and not (word.isdecimal() and int(word) > 0):
            raise click.BadParameter(f"{word} is not one of: {', '.join(['a positive number', *names])}")
    return found


@click.command()
@click.option("--shape", "shapes", multiple=True, default=["0.6B"], type=click.Choice(list(DECODERS)))
@click.option("--lengths", multiple=True, default=[LENGTHS], show_default=True, callback=words)
@click.option("--budgets", multiple=True, default=[BUDGETS[device()]], show_default=True, callback=words)
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="Repeat for more. [default: all]")
@click.option("--seconds", type=float, default=float("inf"), help="Seconds after which a shape gets no further row.")
@append_option
def main(
    shapes: tuple[str, ...],
    lengths: tuple[str, ...],
    budgets: tuple[str, ...],
    only: tuple[str, ...],
    seconds: float,
    append: Path | None,
) -> None:
    print(", ".join(f"{name} {value}" for name, value in environment().items() if value))
    ceiling = race.matrix_rate(DTYPES[device()])
    print(f"square product: {ceiling / 1e12:.2f} TFLOP/s\n{HEADER}")
    failed, measured_rows = False, 0
    for shape in shapes:
        with torch.inference_mode():
            for row in rows_of(shape, lengths, [int(budget) for budget in budgets], only or NAMES, ceiling, seconds):
                print(row, flush=True)
                measured_rows += 1
                failed |= row.status.startswith("FAILED")
                if append is not None:
                    append_row(append, {"benchmark": "forward", "device": device_name(), **asdict(row), **row.figures})
    sys.exit(int(failed or not measured_rows))


def lengths_of(pattern: str, budget: int, largest: int) -> tuple[int, ...]:
    """Return equal lengths that fill a budget with whole texts, or lengths of a pattern that fill the largest one.

    Patterns have the same texts with every budget: batches sorted by length are cut from more than one batch.
    """
    if pattern.isdecimal():
        return (int(pattern),) * max(1, budget // int(pattern))
    return make_lengths(pattern, max(budget, largest))


def rows_of(
    shape: str, patterns: Sequence[str], budgets: Sequence[int], names: Sequence[str], ceiling: float, seconds: float
) -> Iterator[Row]:
    """Yield the rows of a budget for all patterns, then of the next, until `seconds` after the model was loaded."""
    decoder, dtype = DECODERS[shape], DTYPES[device()]
    cases = {(one, budget): lengths_of(one, budget, max(budgets)) for budget in budgets for one in patterns}
    positions = max(length for lengths in cases.values() for length in lengths)
    loaded = load_implementations(decoder, names, positions=positions, dtype=dtype, device=device())
    until = time.monotonic() + seconds
    for (pattern, budget), lengths in cases.items():
        for name, implementation in loaded.items():
            if time.monotonic() > until:
                print("skipped the rest: the time of --seconds is over")
                return
            row = Row(
                shape=shape,
                implementation=name,
                lengths=pattern,
                budget=budget,
                dtype=dtype,
                texts=len(lengths),
                tokens=sum(lengths),
                flops=decoder.sizes.flops(lengths),
                ceiling=ceiling,
            )
            if isinstance(implementation, str):
                yield replace(row, status=implementation)
            else:
                yield measured(row, implementation, lengths, decoder.vocabulary)
            if device() == "cuda":
                torch.cuda.empty_cache()


def measured(row: Row, implementation: Implementation, lengths: Sequence[int], vocabulary: int) -> Row:
    row = replace(row, cosine=implementation.cosine)
    if row.implementation.startswith("fastvec"):
        row = replace(row, torch_ops=replaced_ops(device()))
    try:
        return timed(row, implementation, lengths, vocabulary)
    except torch.OutOfMemoryError:
        return replace(row, status="out of memory")
    except Exception as error:  # whatever a kernel or a library raises, measure the others
        return replace(row, status=f"FAILED: {first_line(error)}")


def timed(row: Row, implementation: Implementation, lengths: Sequence[int], vocabulary: int) -> Row:
    on_gpu, seconds = device() == "cuda", SECONDS_A_ROW[device()]
    batches = implementation.batches(random_texts(lengths, vocabulary), row.budget)

    def one_pass() -> list[torch.Tensor]:
        return [implementation.forward(batch) for batch in batches]

    held = 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    if not torch.cat(one_pass()).isfinite().all():
        return replace(row, status="FAILED: vectors are not finite")
    calls = [partial(implementation.forward, batch) for batch in batches]
    device_seconds, host_seconds = time_alone(calls, seconds=seconds)
    once = len(batches) * max(device_seconds, host_seconds)
    return replace(
        row,
        forwards=len(batches),
        device_seconds=device_seconds,
        host_seconds=host_seconds,
        seconds=time_in_a_row(one_pass, once=once, seconds=seconds),
        peak_memory=implementation.weights + torch.cuda.max_memory_allocated() - held if on_gpu else None,
    )


if __name__ == "__main__":
    main()
