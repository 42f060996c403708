"""Orders examples so that half of the batches have one topic each, found from the examples' vectors.

The topics come from a recursive split: a set of vectors is divided into two along the difference of the parts' means,
until a part is one batch. Parts are whole batches, so no batch is cut short. A larger block of examples gives closer
topics.

All ranks must find the same order. Sums of floating-point numbers differ between machines, so the split calculates
with integers, which float64 holds exactly.

Shapes: n examples, D dimensions.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer]
Integers = npt.NDArray[np.int8]

LEVELS = 127  # integer values of a dimension, on each side of 0
REFINEMENTS = 2  # of a random axis; each makes the difference of the parts' means the new axis
FEWEST_BATCHES = 4  # that are arranged: of fewer, those that are mixed would be one topic


def half_by_topic(
    vectors: Iterable[npt.NDArray[np.floating]], lead: int, size: int, random: np.random.Generator
) -> IntArray:
    """Return an order of `vectors`, n of [D], finite and nonzero: `lead` random ones, then batches of `size`, the rest.

    Half of the batches, drawn at random, have one topic each. The others are mixed, from the members of the other
    topics. `lead` completes a batch that began before these vectors. The order is random if there are fewer than
    `FEWEST_BATCHES` batches, or if they have one vector each.
    """
    whole = integers(np.stack(list(vectors)))
    order = random.permutation(len(whole))
    batches = max(len(order) - lead, 0) // size
    if batches < FEWEST_BATCHES or size < 2:
        return order
    end = lead + batches * size
    parts = topics(order[lead:end], whole, size, random)
    parts = [parts[index] for index in random.permutation(batches)]
    mixed = random.permutation(np.concatenate(parts[: batches // 2])).reshape(-1, size)
    drawn = random.permutation([*mixed, *parts[batches // 2 :]])
    return np.concatenate([order[:lead], drawn.ravel(), order[end:]])


def topics(rows: IntArray, vectors: Integers, size: int, random: np.random.Generator) -> list[IntArray]:
    """Split `rows` of `vectors` [n, D] into parts of `size` rows that are near each other; the last may have more."""
    left = len(rows) // size // 2 * size
    if left == 0:
        return [rows]
    ordered = _along_axis(rows, vectors, left, random)
    return [part for half in (ordered[:left], ordered[left:]) for part in topics(half, vectors, size, random)]


def _along_axis(rows: IntArray, vectors: Integers, left: int, random: np.random.Generator) -> IntArray:
    """Return `rows` along the axis on which the first `left` of them differ most from the others."""
    own = vectors[rows].astype(np.float64)
    first, second = random.choice(len(rows), 2, replace=False)
    axis = own[second] - own[first]
    for _ in range(REFINEMENTS):
        near = np.argsort(own @ axis, kind="stable")
        axis = left * own[near[left:]].sum(axis=0) - (len(rows) - left) * own[near[:left]].sum(axis=0)
        axis //= len(rows)
    return rows[np.argsort(own @ axis, kind="stable")]


def integers(vectors: npt.NDArray[np.floating]) -> Integers:
    """Return vectors [n, D] as integers up to `LEVELS`, each in proportion to its largest dimension."""
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    found: Integers = np.rint(vectors / largest * LEVELS).astype(np.int8)
    return found
