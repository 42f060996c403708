"""What a map shows, for the page and the picture.

Shapes: n points.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastvec.maps.captions import Captions
from fastvec.maps.projection import Points


@dataclass(frozen=True, kw_only=True, slots=True)
class Coloring:
    """The points' colors, by cluster, by category or on a scale.

    `palette` are colors as `#rrggbb`. `names` and `counts` tell what the colors of categories mean; `ends` are the
    values at the two ends of a scale; for clusters all three are empty, as labels on the map name them.
    """

    column: str  # empty for clusters
    palette: tuple[str, ...]
    of_points: npt.NDArray[np.int64]  # [n], indices of the palette
    names: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    ends: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """The name of a region of the map: centered at (x, y), or standing on it if `is_above`."""

    x: float
    y: float
    is_above: bool
    text: str
    color: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    title: str
    subtitle: str
    points: Points  # [n, 2]
    captions: Captions
    coloring: Coloring
    labels: tuple[Label, ...]  # the most important first: the others give way to it
