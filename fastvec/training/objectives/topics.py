"""Orders examples so that half of the batches have texts of one topic, found from the texts' vectors.

The batches of one topic come from a recursive split: a set of vectors is divided into two halves along the difference
of the halves' means, until each part is one batch. Parts are equal, so no batch is short, and their size is the
batch's, so a larger block of examples gives closer topics.

All ranks must find the same order. Sums of floating-point numbers differ between machines, so the split calculates
with integers, which float64 holds exactly.

Shapes: n examples, D dimensions.
"""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer]

LEVELS = 127  # integer values of a dimension, on each side of 0
REFINEMENTS = 2  # of a random axis; each makes the halves' means its new direction


def half_by_topic(vectors: npt.NDArray[np.floating], lead: int, size: int, random: np.random.Generator) -> IntArray:
    """Return an order of `vectors` [n, D]: `lead` random ones, then batches of `size`, then the random rest.

    Half of the batches, drawn at random, are of one topic each. The others are mixed: their members belong to the
    other topics. `lead` completes a batch that began before these vectors.
    """
    order = random.permutation(len(vectors))
    batches = max(len(order) - lead, 0) // size
    if batches < 2 or size < 2:
        return order
    end = lead + batches * size
    rounded = _integers(vectors)
    topics: list[IntArray] = [order[lead:end]]
    while any(len(topic) > size for topic in topics):
        topics = [part for topic in topics for part in _halves(topic, rounded, size, random)]
    topics = [topics[index] for index in random.permutation(batches)]
    mixed = random.permutation(np.concatenate(topics[: batches // 2])).reshape(-1, size)
    drawn = random.permutation([*mixed, *topics[batches // 2 :]])
    return np.concatenate([order[:lead], drawn.ravel(), order[end:]])


def _halves(rows: IntArray, vectors: npt.NDArray[np.int8], size: int, random: np.random.Generator) -> list[IntArray]:
    """Split `rows` of integer `vectors` [n, D] into two parts of whole batches; one part if they are one batch."""
    left = len(rows) // size // 2 * size
    if left == 0:
        return [rows]
    own = vectors[rows].astype(np.float64)
    first, second = random.choice(len(rows), 2, replace=False)
    axis = own[second] - own[first]
    for _ in range(REFINEMENTS):
        near = np.argsort(own @ axis, kind="stable")
        axis = left * own[near[left:]].sum(axis=0) - (len(rows) - left) * own[near[:left]].sum(axis=0)
        axis //= len(rows)
    near = np.argsort(own @ axis, kind="stable")
    return [rows[near[:left]], rows[near[left:]]]


def _integers(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.int8]:
    """Return each vector as integers up to `LEVELS`, in proportion to its largest dimension."""
    most = np.abs(vectors).max(axis=1, keepdims=True)
    integers: npt.NDArray[np.int8] = np.rint(vectors / most * LEVELS).astype(np.int8)
    return integers
