"""Projects vectors to two dimensions, so that those with a high cosine similarity come to lie near each other.

UMAP (McInnes, Healy and Melville, 2018, arXiv:1802.03426) draws a graph of nearest neighbours. Up to `EXACT_ROWS` rows,
the neighbours are exact: on two cores, 20,000 vectors take less than half the time of UMAP's own approximate search,
which numba compiles in each process. Shapes: n vectors, D dimensions, k neighbours.
"""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from fastvec.output.vector_column import FloatArray

Points = npt.NDArray[np.float64]

NEIGHBORS = 15  # UMAP's default; the vector itself is one of them
FEWEST_ROWS = NEIGHBORS + 1  # with fewer, everything is a neighbour of everything
EXACT_ROWS = 50_000  # the work grows with the square
ISLAND_SHARE = 0.02  # of the rows, below which a component is an island
DAMPING = 0.1  # islands at 2 and 4 times the mainland's radius come to 1.2 and 1.3 times
SMALLEST_RADIUS = 1e-9
BLOCK_VALUES = 16 * 2**20  # similarities in memory at a time: 64 MB


def project(vectors: FloatArray, seed: int) -> Points:
    """Return the places of `vectors` [n, D], of length 1 or 0, on a map [n, 2], its longer side horizontal.

    By UMAP, or, for fewer than 16 vectors, by PCA. The same vectors and seed give the same map on the same machine.
    """
    points = _principal(vectors.astype(np.float64)) if len(vectors) < FEWEST_ROWS else _umap(vectors, seed)
    return _principal(points)


def nearest_neighbors(vectors: FloatArray, k: int) -> tuple[npt.NDArray[np.int32], FloatArray]:
    """Return the k nearest neighbours of each of `vectors` [n, D] by cosine, [n, k], and their distances, 1 - cosine.

    The first neighbour is the vector itself, the others follow by distance. `vectors` have length 1; those of length 0
    have distance 1 to all others. Exact but for rounding. Raises ValueError if k > n.
    """
    n = len(vectors)
    if k > n:
        raise ValueError(f"{k} neighbours of {n} vectors")
    neighbors, distances = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
    rows = max(1, BLOCK_VALUES // n)
    for begin in range(0, n, rows):
        own = np.arange(min(rows, n - begin))
        farness = 1 - vectors[begin : begin + rows] @ vectors.T
        np.maximum(farness, 0, out=farness)  # equal vectors: rounding may leave -1e-7
        farness[own, begin + own] = -1  # the vector itself, before its equals
        nearest = np.argpartition(farness, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(farness, nearest, axis=1), axis=1, kind="stable")
        neighbors[begin : begin + rows] = nearest = np.take_along_axis(nearest, order, axis=1)
        distances[begin : begin + rows] = np.take_along_axis(farness, nearest, axis=1)
    distances[:, 0] = 0
    return neighbors, distances


def _umap(vectors: FloatArray, seed: int) -> Points:
    options = {}
    if len(vectors) <= EXACT_ROWS:
        options["precomputed_knn"] = (*nearest_neighbors(vectors, NEIGHBORS), None)
    with warnings.catch_warnings():  # a seed means one thread, which UMAP warns of; so it does of the missing index
        warnings.simplefilter("ignore")
        from umap import UMAP

        umap = UMAP(n_neighbors=NEIGHBORS, metric="cosine", random_state=seed, n_jobs=1, **options)
        points = np.asarray(umap.fit_transform(vectors), np.float64)
    return _with_islands_near(points, umap.graph_)


def _with_islands_near(points: Points, graph: Any) -> Points:
    """Move islands towards the mainland of a map [n, 2].

    An island is a small connected component of the `graph` of neighbours [n, n], such as texts of one template. Nothing
    holds it in UMAP, so it drifts away, and a few of them would leave a tenth of the picture to all other points. An
    island keeps its shape, its direction and the order of distances.
    """
    from scipy.sparse.csgraph import connected_components

    count, component = connected_components(graph, directed=False)
    sizes = np.bincount(component, minlength=count)
    mainland = points[component == sizes.argmax()]
    middle = np.median(mainland, axis=0)
    radius = np.quantile(np.linalg.norm(mainland - middle, axis=1), 0.95)
    sums = [np.bincount(component, weights=points[:, axis], minlength=count) for axis in range(2)]
    ways = np.stack(sums, axis=1) / sizes[:, None] - middle  # from the middle to the components' centers
    farness = np.linalg.norm(ways, axis=1) / max(radius, SMALLEST_RADIUS)
    drifted = (sizes < ISLAND_SHARE * len(points)) & (farness > 1)
    nearer = 1 + DAMPING * np.log1p((farness[drifted] - 1) / DAMPING)
    moves = np.zeros_like(ways)
    moves[drifted] = ways[drifted] * (nearer / farness[drifted] - 1)[:, None]
    moved: Points = points + moves[component]
    return moved


def _principal(values: Points) -> Points:
    """Return `values` [n, d] in the coordinates of their first two principal components [n, 2]; 0 if d is 1."""
    centered = values - values.mean(axis=0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    axes = axes[:2]
    # the sign of an axis is arbitrary: its largest component is made positive
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    points: Points = centered @ axes.T
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
