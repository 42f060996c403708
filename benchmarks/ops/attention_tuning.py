"""Finds the best attention tiles for this device: checks and times every candidate in the configuration table.

Each pass is timed through the public op, and only its own tile varies. At the end it prints each cell's candidates,
fastest first, to copy into the table.
"""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.ops.attention import attention_workload, rope_attention_workload
from benchmarks.ops.measurement import FASTVEC, rows_of
from benchmarks.ops.roofline import measure_ceilings
from benchmarks.ops.shapes import TOKENS, Shape
from benchmarks.ops.workload import expect
from benchmarks.reporting.results import HEADER, Row, append_row, as_json, write_json
from fastvec_kernels._accuracy import Direction
from fastvec_kernels._launch import architecture
from fastvec_kernels.attention.configs import CLASSES, TABLES, override_tiles
from fastvec_kernels.attention.parts import Tile

WIDTHS = (128, 64, 256)  # head sizes, the most common first
LONG_LENGTHS = (512, 2048)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell of the table: a pass, a head size, and the candidate tiles."""

    pass_name: str
    width: int
    candidates: tuple[Tile | None, ...]  # None: no length class for these sequences, another kernel processes them

    @property
    def direction(self) -> Direction:
        return "backward" if self.pass_name.startswith("backward") else "forward"

    @property
    def lengths(self) -> tuple[tuple[int, ...], ...]:
        """The batches on which this pass is measured, as sequence lengths."""
        limit = self.pass_name.split("_")[1]
        if not limit.isdecimal():
            return tuple((length,) * (TOKENS // length) for length in LONG_LENGTHS)
        shorter = max((one for one in CLASSES if one < int(limit)), default=0)
        lengths = range(shorter + 1, int(limit) + 1)
        return (tuple(lengths) * (TOKENS // sum(lengths)),)


def cells(row: str) -> list[Cell]:
    """Return the cells in a row of the table that have more than one candidate, the most valuable first.

    The forward passes come before backward, as embedding has no others. Specialized tiles come last of all, beside the
    first of their cell: they have never run on a GPU, and if one hangs, the other results are already written.
    """
    pointer, specialized = [], []
    for direction, width in itertools.product(("forward", "rotary", "backward"), WIDTHS):
        for pass_name, by_width in TABLES[row].items():
            fitting = [widest for widest in by_width if widest >= width]
            if not pass_name.startswith(direction) or not fitting:
                continue
            tiles = by_width[min(fitting)]
            ordinary: list[Tile | None] = [tile for tile in tiles if tile.path == "pointer"]
            others = [tile for tile in tiles if tile.path == "specialized"]
            none = [None] if ordinary and pass_name.split("_")[1].isdecimal() else []
            pointer.append(Cell(pass_name=pass_name, width=width, candidates=(*ordinary, *none)))
            specialized.append(Cell(pass_name=pass_name, width=width, candidates=(*ordinary[:1], *others)))
    return [cell for cell in pointer + specialized if len(cell.candidates) > 1]


def tune(seconds: float, out: Path | None, append: Path | None) -> int:
    """Print every candidate's rows, then each cell's candidates, fastest first; return 1 if a row failed, else 0."""
    row_name = architecture(torch.device("cuda"))
    if row_name is None:
        raise ValueError(f"the configuration tables have no row for {torch.cuda.get_device_name()}")
    ceilings, begin = measure_ceilings(), time.monotonic()
    print(ceilings, HEADER, sep="\n")
    rows: list[Row] = []
    orders = []
    for cell in cells(row_name):
        if time.monotonic() - begin > seconds:
            print(f"{cell.pass_name} at {cell.width} skipped: {seconds:.0f} s are over")
            continue
        medians: dict[Tile | None, list[float]] = {tile: [] for tile in cell.candidates}
        for tile, row in measured(cell):
            print(row, flush=True)
            rows.append(row)
            if append is not None:
                append_row(append, {"benchmark": "tuning", **asdict(row)})
            medians[tile].append(row.timing.median if row.timing else math.inf)
        fastest_first = sorted(medians, key=lambda tile: geometric_mean(medians[tile]))
        orders.append(f"{cell.pass_name}, {cell.width}: {', '.join(map(tile_source, fastest_first))}")
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / "attention.json", {**as_json(rows, ceilings), "orders": orders})
    print(f"\n{row_name}, fastest first:", *orders, sep="\n")
    return int(any(row.failed for row in rows))


def measured(cell: Cell) -> Iterator[tuple[Tile | None, Row]]:
    """Yield each candidate's rows; the reference runs once for all candidates, without gradients if none are checked.

    In float32 and one run of equal lengths at a time, it takes longer than the candidates.
    """
    for lengths in cell.lengths:
        shape = Shape(
            group=cell.pass_name,
            name=f"{cell.pass_name} d{cell.width} to {max(lengths)}",
            given=lengths,
            heads=32,
            kv_heads=8,
            head_dim=cell.width,
            variant="norm",
        )
        make = rope_attention_workload if cell.pass_name.startswith("rotary") else attention_workload
        workload = make(shape, "cuda", torch.bfloat16)
        if cell.direction == "forward":
            workload = replace(workload, gradients=0)
        expected = expect(workload, workload.inputs())
        for tile in cell.candidates:
            with override_tiles(**{cell.pass_name: () if tile is None else (tile,)}):
                rows = list(
                    rows_of(workload, None, directions=(cell.direction,), implementations=FASTVEC, expected=expected)
                )
            yield from ((tile, replace(row, implementation=tile_source(tile))) for row in rows)


def tile_source(tile: Tile | None) -> str:
    """Return the tile as it is written in the table."""
    if tile is None:
        return "none"
    values = [repr(value) for value in tile]
    return f"Tile({', '.join(values)})"


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.inf
