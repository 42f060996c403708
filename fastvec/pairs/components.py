"""Joins pairs of rows to groups: the connected components of the graph whose edges they are.

A forest in one array, as of Tarjan's union-find, that takes many pairs at once. Shapes: n rows or pairs.
"""

import numpy as np

from fastvec.pairs.unit_blocks import Positions


class Components:
    """The components of the rows from 0 to `size` - 1. The root of one is its smallest row."""

    def __init__(self, size: int) -> None:
        self._parents = np.arange(size)

    def roots(self, rows: Positions) -> Positions:
        """Return the root of each of `rows` [n]; all of them are moved closer to it."""
        found = rows
        while True:
            above = self._parents[found]
            higher = self._parents[above]
            if np.array_equal(above, higher):
                self._parents[rows] = above
                return above
            self._parents[found] = higher
            found = higher

    def join(self, a: Positions, b: Positions) -> None:
        """Join the components of `a[i]` and `b[i]`, for all n pairs."""
        while len(a):
            a, b = self.roots(a), self.roots(b)
            apart = a != b
            a, b = a[apart], b[apart]
            # a root that is in several pairs is put below the smallest other one; its other pairs go round again
            np.minimum.at(self._parents, np.maximum(a, b), np.minimum(a, b))
