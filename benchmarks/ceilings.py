"""Measures the ceilings of a device: its copy rate, and the rates of a decoder's matrix products.

    PYTHONPATH=.:kernels python -m benchmarks.ceilings [--shape 0.6B] [--seconds S] [--append FILE]

The products are those of one layer, for several numbers of tokens, in bf16 and, on a GPU that has it, in fp8 with a
scale for each row, called as `fastvec.decoders.quantized` does; quantizing the input is not included. A row named
"layer" has the sum of a layer's products, and a forward takes at least as long as this times the layers. On a CPU a few
tokens are measured, in bf16 and float32, which tests this command.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import click
import torch
import torch.nn.functional as F

from benchmarks.engines.device_timing import time_op
from benchmarks.engines.engines import device
from benchmarks.engines.models import ModelShape
from benchmarks.engines.random_decoder import DECODERS, device_name
from benchmarks.ops.roofline import COPY_BYTES, MATRIX_SIZE, sets_of_inputs
from benchmarks.reporting.results import append_option, append_row, environment, first_line
from fastvec.settings import runs_fp8
from fastvec_kernels import quantize_rows_reference

Tensors: TypeAlias = tuple[torch.Tensor, ...]

TOKENS = {"cuda": (4096, 8192, 16_384, 32_768, 65_536), "cpu": (64, 256)}
SHAPES = {"cuda": ("0.6B", "8B"), "cpu": ("tiny", "0.6B")}
SQUARE = {"cuda": MATRIX_SIZE, "cpu": 512}
COPIED = {"cuda": COPY_BYTES, "cpu": 1 << 26}
SECONDS_A_ROW = {"cuda": 0.2, "cpu": 0.02}
HEADER = f"{'product':18} {'tokens':>6} {'dtype':8} {'TFLOP/s':>8} {'TB/s':>6} {'µs':>10} {'µs/token':>9}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One copy or product, or all products of a layer. `status` is ok, or says why there are no figures."""

    name: str
    tokens: int
    dtype: str
    status: str = "ok"
    seconds: float | None = None
    flops: float = 0.0
    bytes: int = 0  # of a copy: read and written
    layers: int = 0  # of the model, in the row of a layer

    @property
    def figures(self) -> dict[str, float | None]:
        """TFLOP/s, TB/s of a copy, and µs a token: of this row, and of all layers of the model."""
        seconds, tokens = self.seconds, self.tokens
        return {
            "tflops": self.flops / seconds / 1e12 if seconds and self.flops else None,
            "tb_per_s": self.bytes / seconds / 1e12 if seconds and self.bytes else None,
            "us_per_token": seconds / tokens * 1e6 if seconds and tokens else None,
            "us_per_token_all_layers": seconds / tokens * 1e6 * self.layers if seconds and self.layers else None,
        }

    def __str__(self) -> str:
        start = f"{self.name:18} {self.tokens or '':>6} {self.dtype:8}"
        if self.seconds is None:
            return f"{start} {self.status}"
        found = self.figures
        all_layers = found["us_per_token_all_layers"]
        end = "" if all_layers is None else f"  {self.layers} layers {all_layers:.3f} µs/token"
        return (
            f"{start} {cell(found['tflops'], 8, 2)} {cell(found['tb_per_s'], 6, 3)} {self.seconds * 1e6:10.1f} "
            f"{cell(found['us_per_token'], 9, 4)}{end}"
        )


def cell(value: float | None, width: int, digits: int) -> str:
    return " " * width if value is None else f"{value:{width}.{digits}f}"


@click.command()
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    type=click.Choice(list(DECODERS)),
    help="Repeat for more. [default: 0.6B and 8B; on a CPU tiny and 0.6B]",
)
@click.option("--seconds", type=float, default=float("inf"), help="Start no further row after this many seconds.")
@append_option
def main(shapes: tuple[str, ...], seconds: float, append: Path | None) -> None:
    until = time.monotonic() + seconds
    print(", ".join(f"{name} {value}" for name, value in environment().items() if value))
    print(HEADER)
    failed = False
    with torch.inference_mode():
        for row in rows_of(shapes or SHAPES[device()], until):
            print(row, flush=True)
            failed |= row.status.startswith("FAILED")
            if append is not None:
                append_row(append, {"benchmark": "ceilings", "device": device_name(), **asdict(row), **row.figures})
    sys.exit(failed)


def rows_of(shapes: tuple[str, ...], until: float) -> Iterator[Row]:
    yield copy_row()
    dtypes = ["bfloat16", *(["fp8"] if runs_fp8(device()) else []), *(["float32"] if device() == "cpu" else [])]
    square = SQUARE[device()]
    for dtype in dtypes:
        yield product_row(f"{square}³", square, square, square, dtype)
    for shape in shapes:
        for dtype in dtypes:
            for tokens in TOKENS[device()]:
                if time.monotonic() > until:
                    print("skipped the rest: the time of --seconds is over")
                    return
                yield from layer_rows(shape, tokens, dtype)


def copy_row() -> Row:
    source = torch.randint(0, 255, (COPIED[device()],), dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    seconds = time_op(lambda _: target.copy_(source), [None], seconds=SECONDS_A_ROW[device()])
    return Row(name="copy", tokens=0, dtype="bytes", seconds=seconds, bytes=2 * COPIED[device()])


def layer_products(sizes: ModelShape) -> dict[str, tuple[int, int]]:
    """Return the input and output widths of each product of a layer, as the fused path joins them."""
    heads, kv_heads = sizes.heads * sizes.head, sizes.kv_heads * sizes.head
    return {
        "qkv": (sizes.hidden, heads + 2 * kv_heads),
        "o": (heads, sizes.hidden),
        "gate_up": (sizes.hidden, 2 * sizes.intermediate),
        "down": (sizes.intermediate, sizes.hidden),
    }


def layer_rows(shape: str, tokens: int, dtype: str) -> Iterator[Row]:
    sizes, rows = DECODERS[shape].sizes, []
    for name, (inner, outer) in layer_products(sizes).items():
        rows.append(product_row(f"{shape} {name}", tokens, inner, outer, dtype))
        yield rows[-1]
    times = [row.seconds for row in rows if row.seconds is not None]
    if len(times) == len(rows):
        flops = sum(row.flops for row in rows)
        yield Row(
            name=f"{shape} layer", tokens=tokens, dtype=dtype, seconds=sum(times), flops=flops, layers=sizes.layers
        )


def product_row(name: str, tokens: int, inner: int, outer: int, dtype: str) -> Row:
    """Time x · Wᵀ with x [tokens, inner] and W [outer, inner]."""
    flops = 2.0 * tokens * inner * outer
    try:
        seconds = fp8_seconds(tokens, inner, outer) if dtype == "fp8" else linear_seconds(tokens, inner, outer, dtype)
    except torch.OutOfMemoryError:
        return Row(name=name, tokens=tokens, dtype=dtype, status="out of memory", flops=flops)
    except RuntimeError as error:  # a product that the library refuses is a row, and the others are measured
        return Row(name=name, tokens=tokens, dtype=dtype, status=f"FAILED: {first_line(error)}", flops=flops)
    return Row(name=name, tokens=tokens, dtype=dtype, seconds=seconds, flops=flops)


def linear_seconds(tokens: int, inner: int, outer: int, dtype: str) -> float:
    def draw() -> Tensors:
        return random_matrix(tokens, inner, dtype), random_matrix(outer, inner, dtype)

    return seconds_of(lambda inputs: F.linear(inputs[0], inputs[1]), draw)


def fp8_seconds(tokens: int, inner: int, outer: int) -> float:
    def draw() -> Tensors:
        x, weight = random_matrix(tokens, inner, "bfloat16"), random_matrix(outer, inner, "bfloat16")
        # the reference, because this command is to measure cuBLAS even where fastvec's kernel fails
        return *quantize_rows_reference(x), *quantize_rows_reference(weight)

    def multiply(inputs: Tensors) -> torch.Tensor:
        rows, scales, weight, weight_scales = inputs
        return torch._scaled_mm(
            rows,
            weight.T,
            scale_a=scales[:, None],
            scale_b=weight_scales[None],
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )

    return seconds_of(multiply, draw)


def random_matrix(rows: int, columns: int, dtype: str) -> torch.Tensor:
    return torch.randn(rows, columns, device=device(), dtype=getattr(torch, dtype))


def seconds_of(call: Callable[[Tensors], torch.Tensor], draw: Callable[[], Tensors]) -> float:
    """Time `call` on as many sets of inputs from `draw` as do not fit into a GPU's cache."""
    inputs = [draw()]
    if device() == "cuda":
        inputs += [draw() for _ in range(sets_of_inputs(*inputs[0]) - 1)]
    return time_op(call, inputs, seconds=SECONDS_A_ROW[device()])


if __name__ == "__main__":
    main()
