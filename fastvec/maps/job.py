"""The job behind `fastvec map`."""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastvec.errors import OutputError, UsageError
from fastvec.maps.captions import Captions, read_captions, require_kept
from fastvec.maps.clusters import cluster_points, name_clusters
from fastvec.maps.colors import cluster_colors, column_colors, darkened
from fastvec.maps.drawing import Coloring, Drawing, Label
from fastvec.maps.page import page_of
from fastvec.maps.picture import picture_of
from fastvec.maps.projection import FEWEST_ROWS, Points, project
from fastvec.maps.sample import Sample, read_sample
from fastvec.output.convert import require_replaceable
from fastvec.system.durable_files import replacing, translated_os_errors, write_at
from fastvec.vectors.stored import Vectors, open_vectors

PAGE, PICTURE = ".html", ".png"
LIMIT = 50_000
FEW_POINTS = 2000  # with more, labels are over them, and shorter
FEWER_WORDS = 2
LABEL_WIDTH = 0.08  # of the map
LABEL_COLOR = "#1f2328"  # on a map that is colored by a column
_PACKAGES = {"sklearn": "scikit-learn", "umap": "umap-learn", "bokeh": "bokeh", "matplotlib": "matplotlib"}

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class MapReport:
    """The report of a map. `clusters` are the names and sizes, the largest first."""

    outputs: tuple[str, ...]
    rows: int
    drawn: int
    without_vector: int
    projection: str
    clusters: tuple[tuple[str, int], ...]
    size_bytes: int
    seconds: float
    note: str

    @property
    def return_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, Any]:
        clusters = [{"name": name, "size": size} for name, size in self.clusters]
        return {**asdict(self), "clusters": clusters}

    def __str__(self) -> str:
        rows = f"{self.rows:,} rows" if self.drawn == self.rows else f"{self.drawn:,} of {self.rows:,} rows"
        missing = f", {self.without_vector:,} of which have no vector" if self.without_vector else ""
        line = f"{rows}{missing}, {len(self.clusters)} clusters, to {' and '.join(self.outputs)}"
        return f"{line}, {self.size_bytes / 1e6:.1f} MB, in {self.seconds:.1f} s" + (
            f"\n{self.note}" if self.note else ""
        )


def draw_map(
    files: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    png: str | Path | None = None,
    label: str | None = None,
    color: str | None = None,
    vector_column: str | None = None,
    limit: int = LIMIT,
    seed: int = 0,
    overwrite: bool = False,
) -> MapReport:
    """Draw the vectors of finished outputs as a map, on which texts with similar vectors are near each other.

    `output` ends in `.html` or `.png`; with `png`, both are written. The page opens without a network. `label` is the
    kept column with the titles, by default the one that looks like it. `color` is a kept column whose values color the
    points instead of the clusters. Of more rows than `limit`, this many are drawn evenly over the outputs. The same
    input, options and library versions give the same bytes on the same machine.

    Raises UsageError for a column that is not there or another suffix, OutputError if an output cannot be read or a
    file cannot be written, or a package of `fastvec[map]` is missing; RefusedError if a file exists, unless
    `overwrite`; DiskFullError.
    """
    begun = time.monotonic()
    targets = _targets(output, png)
    if limit < 1:
        raise UsageError(f"--limit {limit}: a map has at least 1 row")
    with ExitStack() as stack:
        for target in targets.values():
            with translated_os_errors(target):
                require_replaceable(target, overwrite=overwrite)
        _require_packages()
        listed = [files] if isinstance(files, str | Path) else files
        vectors = stack.enter_context(open_vectors(listed, vector_column=vector_column))
        for name, option in ((label, "--label"), (color, "--color")):
            if name is not None:
                require_kept(vectors, name, option)
        sample = read_sample(vectors, limit, seed)
        if not len(sample.positions):
            raise OutputError(
                f"{vectors.parts[0].name} has no vectors to draw: none of its {vectors.rows:,} rows has one"
            )
        coloring = None if color is None else column_colors(color, vectors.take(sample.positions, [color])[color])
        log.info(f"reading the texts of {len(sample.positions):,} rows")
        captions = read_captions(vectors, sample.positions, label)
        log.info(f"projecting {len(sample.positions):,} vectors of {vectors.dims} dimensions")
        points = project(sample.vectors, seed)
        drawing, clusters = _drawing(vectors, sample, points, captions, coloring, seed)
        size = _write(drawing, targets)
        return MapReport(
            outputs=tuple(map(str, targets.values())),
            rows=vectors.rows,
            drawn=len(points),
            without_vector=vectors.rows - sample.rows_with_vector,
            projection=_projection(len(points)),
            clusters=clusters,
            size_bytes=size,
            seconds=round(time.monotonic() - begun, 2),
            note=captions.note,
        )


def _targets(output: str | Path, png: str | Path | None) -> Mapping[str, Path]:
    """Return the files to write by their suffixes. Raises UsageError."""
    target = Path(output)
    if target.suffix not in (PAGE, PICTURE):
        raise UsageError(f"{output} ends in neither .html nor .png, the formats of a map")
    if png is None:
        return {target.suffix: target}
    if target.suffix == PICTURE or Path(png).suffix != PICTURE:
        raise UsageError(f"-o {output} --png {png}: with --png, -o names a .html file and --png a .png file")
    return {PAGE: target, PICTURE: Path(png)}


def _write(drawing: Drawing, targets: Mapping[str, Path]) -> int:
    """Write the files, when all are made, and return their size in bytes."""
    contents = [page_of(drawing) if suffix == PAGE else picture_of(drawing) for suffix in targets]
    for content, target in zip(contents, targets.values(), strict=True):
        with translated_os_errors(target), replacing(target) as fd:
            write_at(fd, 0, content)
    return sum(map(len, contents))


def _require_packages() -> None:
    missing = [package for module, package in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise OutputError(f"maps need the package {missing[0]}: pip install 'fastvec[map]'")


def _projection(rows: int) -> str:
    return "PCA" if rows < FEWEST_ROWS else "UMAP"


def _drawing(
    vectors: Vectors, sample: Sample, points: Points, captions: Captions, coloring: Coloring | None, seed: int
) -> tuple[Drawing, tuple[tuple[str, int], ...]]:
    clusters = cluster_points(points, seed)
    texts = [f"{title}\n{text}" for title, text in zip(captions.titles, captions.texts, strict=True)]
    names = name_clusters(clusters, texts)
    centers = np.array([np.median(points[clusters == c], axis=0) for c in range(len(names))])
    by_cluster = cluster_colors(clusters, centers)
    drawing = Drawing(
        title=_title(vectors),
        subtitle=_subtitle(vectors, sample),
        points=points,
        captions=captions,
        coloring=coloring or by_cluster,
        labels=_labels(points, clusters, names, by_cluster if coloring is None else None),
    )
    sizes = np.bincount(clusters).tolist()
    return drawing, tuple((", ".join(name), size) for name, size in zip(names, sizes, strict=True))


def _labels(
    points: Points, clusters: npt.NDArray[np.int64], names: Sequence[Sequence[str]], coloring: Coloring | None
) -> tuple[Label, ...]:
    """Return the clusters' labels: over the middle of each, or above it where a few points would be hidden."""
    is_few = len(points) <= FEW_POINTS
    width = np.ptp(points[:, 0]) * LABEL_WIDTH
    labels = []
    for c, name in enumerate(names):
        own = points[clusters == c]
        middle = np.median(own, axis=0)
        # a point, because there may be none in the middle of several islands
        x, y = own[np.linalg.norm(own - middle, axis=1).argmin()]
        if is_few:
            y = own[np.abs(own[:, 0] - x) <= width / 2, 1].max()
        color = LABEL_COLOR
        if coloring is not None:
            color = darkened(coloring.palette[coloring.of_points[np.argmax(clusters == c)]])
        if name:
            text = "\n".join(name if is_few else name[:FEWER_WORDS])
            labels.append(Label(x=round(float(x), 3), y=round(float(y), 3), is_above=is_few, text=text, color=color))
    return tuple(labels)


def _title(vectors: Vectors) -> str:
    """Return the name of the corpus: of its first file, and how many others there are."""
    uris = list(dict.fromkeys(str(file["uri"]) for part in vectors.parts for file in part.output.inputs))
    if not uris:
        return Path(vectors.parts[0].name).name
    name = "standard input" if uris[0] == "-" else uris[0].rstrip("/").rsplit("/", 1)[-1]
    others = len(uris) - 1
    return f"{name} and {others:,} other file{'s' * (others > 1)}" if others else name


def _subtitle(vectors: Vectors, sample: Sample) -> str:
    drawn, total = len(sample.positions), vectors.rows
    what = "passages" if vectors.first.has_passages else "texts"
    parts = [f"{drawn:,} {what}" if drawn == total else f"{drawn:,} of {total:,} {what}"]
    if missing := total - sample.rows_with_vector:
        parts.append(f"{missing:,} without a vector")
    model = Path(vectors.first.own.get("model", "")).name
    parts.append(f"{model}, {vectors.dims} dimensions" if model else f"{vectors.dims} dimensions")
    parts.append(f"projected by {_projection(drawn)}")
    return " · ".join(parts)
