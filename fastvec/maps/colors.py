"""Chooses the colors of the points: by cluster, or by a kept column.

Shapes: n points, C clusters.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from fastvec.corpus.columns import is_string
from fastvec.errors import UsageError
from fastvec.maps.captions import shown_values
from fastvec.maps.drawing import Coloring
from fastvec.maps.projection import Points

# Tableau 10, without its grey, which is that of other and missing values
PALETTE = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#b07aa1", "#edc948", "#9c755f", "#ff9da7")
GREY = "#b4b8bf"
STEPS = 64  # of a scale
NAME_CHARACTERS = 40


def cluster_colors(clusters: npt.NDArray[np.int64], centers: Points) -> Coloring:
    """Color n points by their clusters, of which `centers` [C, 2] are the places; near clusters get other colors."""
    chosen: list[int] = []
    for center in centers:
        away = [np.inf] * len(PALETTE)
        for other, color in enumerate(chosen):
            away[color] = min(away[color], float(np.linalg.norm(center - centers[other])))
        chosen.append(int(np.argmax(away)))
    return Coloring(column="", palette=PALETTE, of_points=np.array(chosen, np.int64)[clusters])


def column_colors(name: str, column: pa.ChunkedArray) -> Coloring:
    """Color points by the values of a column [n]: numbers and times on a scale, others by value.

    Raises UsageError if the column has lists, structs or bytes.
    """
    kind = column.type
    is_scale = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_temporal(kind)
    if is_scale and pc.count_distinct(column).as_py() > len(PALETTE):
        return _scale(name, column)
    if not (is_scale or is_string(kind) or types.is_boolean(kind) or types.is_null(kind)):
        raise UsageError(f"--color {name} is a column of {kind}: choose one of strings, numbers, dates or times")
    return _categories(name, shown_values(column))


def darkened(color: str) -> str:
    """Return a color, `#rrggbb`, dark enough for text on white."""
    return "#" + "".join(f"{int(int(color[i : i + 2], 16) * 0.6):02x}" for i in (1, 3, 5))


def _categories(name: str, values: Sequence[str]) -> Coloring:
    distinct, inverse, counts = np.unique(np.array(values, object), return_inverse=True, return_counts=True)
    order = [i for i in np.argsort(-counts, kind="stable").tolist() if distinct[i]]
    shown, rest = order[: len(PALETTE)], order[len(PALETTE) :]
    color_of = np.full(len(distinct), len(shown), np.int64)
    color_of[shown] = np.arange(len(shown))
    names = [_short(distinct[i]) for i in shown]
    amounts = [int(counts[i]) for i in shown]
    others = len(values) - sum(amounts)
    if others:
        empty = counts[distinct == ""].sum()
        parts = [f"{len(rest):,} other values"] * bool(rest) + ["no value"] * bool(empty)
        names.append(", ".join(parts))
        amounts.append(others)
    palette = (*PALETTE[: len(shown)], *[GREY] * bool(others))
    return Coloring(
        column=name, palette=palette, of_points=color_of[inverse], names=tuple(names), counts=tuple(amounts)
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= NAME_CHARACTERS else f"{line[: NAME_CHARACTERS - 1]}…"


def _scale(name: str, column: pa.ChunkedArray) -> Coloring:
    """Color from the 2nd to the 98th percentile, so that a few far values do not make all others one color."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    is_time = types.is_temporal(column.type)
    numbers = _integers(column) if is_time else pc.cast(column, pa.float64(), safe=False)
    values = numbers.to_numpy().astype(np.float64)
    finite = np.isfinite(values)
    present = np.sort(values[finite])
    low, high = present[[int(0.02 * (len(present) - 1)), -1 - int(0.02 * (len(present) - 1))]]
    share = np.clip((values[finite] - low) / max(high - low, np.finfo(np.float64).tiny), 0, 1)
    of_points = np.full(len(values), STEPS, np.int64)
    of_points[finite] = np.minimum((share * STEPS).astype(np.int64), STEPS - 1)
    scale = [to_hex(colormaps["viridis"](0.92 * i / (STEPS - 1))) for i in range(STEPS)]
    shown = [_shown(value, column.type) for value in (low, high)]
    ends = ("≤ " * bool(present[0] < low) + shown[0], "≥ " * bool(present[-1] > high) + shown[1])
    return Coloring(column=name, palette=(*scale, GREY), of_points=of_points, ends=ends)


def _integers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return dates, times and durations as numbers of their unit."""
    return pc.cast(column, pa.int32() if column.type.bit_width == 32 else pa.int64())


def _shown(value: float, kind: pa.DataType) -> str:
    if types.is_temporal(kind):
        whole = pa.chunked_array([pa.array([int(value)], pa.int32() if kind.bit_width == 32 else pa.int64())])
        return shown_values(whole.cast(kind))[0]
    return str(int(value)) if types.is_integer(kind) else f"{value:.4g}"
