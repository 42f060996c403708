"""Compares a block of vectors with queries: by a matrix product, on a GPU, by bits, or by a distance.

Shapes: q queries, b rows of a block, D dimensions, W values that store a vector (D, or D / 8 if binary).
"""

import warnings
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from fastvec.checkpoints.sentence_transformers import Similarity
from fastvec.encoding.similarity import similarities, unit
from fastvec.output.vector_column import SIGNS, FloatArray
from fastvec.system.float32 import full_float32
from fastvec.vectors.stored import Block, Vectors

Rows = npt.NDArray[np.intp]
RESCORED = 10  # times k: how many of the nearest rows by bits are compared by values
# Fewer queries are compared with binary vectors by bits: a query takes 37 ms for a million rows of 384 bits then. By
# products it takes 6 ms, after 0.1 s to unpack the bits, but one query reads eight floats for each byte.
BIT_QUERIES = 4
# Fewer queries are compared on the CPU: a product of q queries does q / 2 operations for each byte of float32 that
# would move to the GPU, and a CPU does more in the time of that byte.
GPU_QUERIES = 64


class Scoring(ABC):
    """How a block is compared with the queries. A row is selected by its key; `oversampling` times k of them are, if
    keys are not the similarities themselves.
    """

    oversampling = 1

    @abstractmethod
    def keys(self, block: Block, rows: Rows | None) -> FloatArray:
        """Return a number for each query and row [q, b], the larger the better; of `rows` of the block only, if given.

        The next call may overwrite the array.
        """

    def scores(self, block: Block, queries: Rows, rows: Rows, keys: FloatArray) -> FloatArray:
        """Return the similarities [n] of n pairs of a query and a row of the block, which have these `keys`."""
        return keys


class Products(Scoring):
    """Cosine and dot product by one matrix product a block.

    The ranges of int8 vectors are multiplied into the queries instead of the rows.
    """

    def __init__(self, vectors: Vectors, queries: FloatArray, *, normalize: bool) -> None:
        self._vectors, self._queries, self._normalize = vectors, queries, normalize
        self._scratch = self._floats = np.zeros(0, dtype=np.float32)

    def keys(self, block: Block, rows: Rows | None) -> FloatArray:
        queries = self._queries
        if self._normalize:
            values = self._vectors.floats(block, unit=True)
            values = values if rows is None else values[rows]
        else:
            values = block.values if rows is None else block.values[rows]
            values = self._in_float32(values)
            if block.ranges is not None:
                queries = queries * (block.ranges / np.float32(127))
        return self._product(queries, values)

    def _in_float32(self, values: npt.NDArray[Any]) -> FloatArray:
        """Return stored values [b, W] as floats [b, D] in memory that the next call overwrites; float32 as they are.

        New memory for each block would take longer than the conversion, because the system clears it.
        """
        if values.dtype == np.float32:
            return values
        shape = len(values), self._vectors.dims
        if self._floats.size < shape[0] * shape[1]:
            self._floats = np.empty(shape, dtype=np.float32)
        out = self._floats.reshape(-1)[: shape[0] * shape[1]].reshape(shape)
        if values.dtype == np.uint8:
            np.take(SIGNS, values, axis=0, out=out.reshape(len(values), -1, 8), mode="clip")
        elif values.dtype == np.float16:
            import torch

            with warnings.catch_warnings():  # torch warns of the memory of a mapped file, which cannot be written
                warnings.simplefilter("ignore", UserWarning)
                torch.from_numpy(out).copy_(torch.from_numpy(values))  # in an eighth of the time of NumPy
        else:
            np.copyto(out, values)
        return out

    def _product(self, queries: FloatArray, values: FloatArray) -> FloatArray:
        count, size = len(queries), len(queries) * len(values)
        if len(self._scratch) < size:
            self._scratch = np.empty(size, dtype=np.float32)
        out = self._scratch[:size].reshape(count, len(values))
        if count == 1:  # a matrix times a vector reads the rows once, and is not split into tiles
            np.dot(values, queries[0], out=out[0])
            return out
        return np.matmul(queries, values.T, out=out)


class ProductsOnGpu(Products):
    """The same on a GPU, to which each block moves as float32, and the queries once."""

    def __init__(self, vectors: Vectors, queries: FloatArray, *, normalize: bool, device: str) -> None:
        super().__init__(vectors, queries, normalize=normalize)
        self._device = device
        self._left: tuple[FloatArray, Any] | None = None  # queries, and their copy on the GPU

    def _product(self, queries: FloatArray, values: FloatArray) -> FloatArray:
        import torch

        if self._left is None or self._left[0] is not queries:  # once, unless a block has its own ranges
            self._left = queries, torch.tensor(queries, device=self._device)
        # copied, because torch warns of the memory of a mapped file, which cannot be written
        right = torch.tensor(values, device=self._device)
        with full_float32():
            found: FloatArray = (self._left[1] @ right.T).cpu().numpy()
        return found


class Distances(Scoring):
    """Euclidean and Manhattan distances, negative."""

    def __init__(self, vectors: Vectors, queries: FloatArray, function: Similarity) -> None:
        self._vectors, self._queries, self._function = vectors, queries, function

    def keys(self, block: Block, rows: Rows | None) -> FloatArray:
        values = self._vectors.floats(block)
        return similarities(self._queries, values if rows is None else values[rows], self._function)


class Bits(Scoring):
    """Binary vectors: rows are selected by the number of bits that differ from the query's, and scored by its values.

    A score is the cosine, or the dot product, of the query with the row's values 1 and -1.
    """

    oversampling = RESCORED

    def __init__(self, queries: FloatArray, *, normalize: bool) -> None:
        self._queries = queries
        self._scale = np.float32(queries.shape[1] ** -0.5 if normalize else 1)
        self._bits = np.packbits(queries > 0, axis=1)

    def keys(self, block: Block, rows: Rows | None) -> FloatArray:
        values = block.values if rows is None else block.values[rows]
        width = np.uint64 if values.shape[1] % 8 == 0 else np.uint8
        values, queries = np.ascontiguousarray(values).view(width), self._bits.view(width)
        found = np.empty((len(queries), len(values)), dtype=np.float32)
        for query, out in zip(queries, found, strict=True):
            out[:] = np.bitwise_count(values ^ query).sum(axis=1, dtype=np.uint16)
        return np.negative(found, out=found)

    def scores(self, block: Block, queries: Rows, rows: Rows, keys: FloatArray) -> FloatArray:
        signs = np.unpackbits(block.values[rows], axis=1).astype(np.float32) * 2 - 1
        scores: FloatArray = np.einsum("nd,nd->n", self._queries[queries], signs) * self._scale
        return scores


def scoring_for(vectors: Vectors, queries: FloatArray, function: Similarity, device: str) -> Scoring:
    """Return how `queries` [q, D] are compared with `vectors` by the similarity `function`.

    Vectors that were normalized when they were embedded are not normalized again, also if they were rounded since.
    """
    cosine = function == "cosine"
    if function not in ("cosine", "dot"):
        return Distances(vectors, queries, function)
    queries = unit(queries) if cosine else queries
    normalize = cosine and not vectors.first.normalize
    if vectors.dtype == "binary":
        if len(queries) < BIT_QUERIES:
            return Bits(queries, normalize=cosine)
        # all rows of 1 and -1 have the same length
        queries, normalize = queries * np.float32(vectors.dims**-0.5 if cosine else 1), False
    if device != "cpu" and len(queries) >= GPU_QUERIES:
        return ProductsOnGpu(vectors, queries, normalize=normalize, device=device)
    return Products(vectors, queries, normalize=normalize)
