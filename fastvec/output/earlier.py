"""Finds the vectors of an earlier output by the hashes of their texts, for a run that reuses them.

Shapes: n texts, D dimensions of a vector.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import ipc

from fastvec.errors import OutputError, RefusedError
from fastvec.fingerprint import SHOWN_DIFFERENCES, Json, fingerprint_differences
from fastvec.output.reader import read_output
from fastvec.output.vector_column import FloatArray, from_values
from fastvec.output.verify import open_intact

HASH_BYTES = 16  # 128 bits, which no two of 10¹⁵ texts share by chance
HASH_TYPE = pa.binary(HASH_BYTES)

Hashes = npt.NDArray[np.uint64]  # [n, 2]


class EarlierOutput:
    """A finished output whose vectors may be reused, by its metadata alone. `version` identifies the file.

    Raises OutputError if it is not a finished Arrow output, or has no hashes.
    """

    def __init__(self, path: Path) -> None:
        self.output = read_output(path)
        stat = path.stat()
        self.version: list[Json] = [str(path), stat.st_size, stat.st_mtime_ns]
        if self.output.is_parquet:
            raise OutputError(f"{path} cannot be reused: it is a Parquet file, and only Arrow files can; keep both")
        if "hash_columns" not in self.output.own:
            raise OutputError(f"{path} cannot be reused: it has no hashes of its texts, which --hash writes")

    def require_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise RefusedError if the vectors were made with other `settings`, fields of a job's fingerprint."""
        begun = self.output.fingerprint
        found = fingerprint_differences({name: begun.get(name) for name in settings}, settings)
        if found:
            listed = "; ".join(found[:SHOWN_DIFFERENCES])
            raise RefusedError(
                f"{self.output.path} cannot be reused, its vectors are others: {listed}; leave --reuse out"
            )


class EarlierVectors:
    """The vectors of an earlier output. Each takes 24 bytes of memory; the file is memory-mapped.

    The hashes are sorted by their first half. Of several with the same first half only the first is found: the texts of
    the others are embedded again.
    """

    def __init__(self, earlier: EarlierOutput) -> None:
        """Check every byte of the file, and read its hashes. Raises OutputError if it is damaged."""
        path = earlier.output.path
        self.output = open_intact(path)
        self._columns = list(zip(json.loads(self.output.own["hash_columns"]), self.output.vector_columns, strict=True))
        reader = ipc.open_file(pa.memory_map(os.fsencode(path)))
        self._batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        self._first_rows = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        hashes, places = [np.zeros((0, 2), dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
        for first_row, batch in zip(self._first_rows, self._batches, strict=False):
            for number, (hash_column, vector_column) in enumerate(self._columns):
                valid = batch.column(vector_column).is_valid().to_numpy(zero_copy_only=False)
                hashes.append(as_halves(batch.column(hash_column))[valid])
                places.append((first_row + np.flatnonzero(valid)) * len(self._columns) + number)
        halves = np.concatenate(hashes)
        order = np.argsort(halves[:, 0], kind="stable")
        self._first_halves, self._second_halves = halves[order, 0], halves[order, 1]
        self._places = np.concatenate(places)[order]  # row · columns + column

    def find(self, hashes: Hashes) -> npt.NDArray[np.int64]:
        """Return the place of the vector for each of `hashes` [n, 2]; -1 if there is none."""
        if len(self._places) == 0:
            return np.full(len(hashes), -1)
        at = np.minimum(np.searchsorted(self._first_halves, hashes[:, 0]), len(self._places) - 1)
        found = (self._first_halves[at] == hashes[:, 0]) & (self._second_halves[at] == hashes[:, 1])
        return np.where(found, self._places[at], -1)

    def vectors(self, places: npt.NDArray[np.int64]) -> FloatArray:
        """Return the vectors [n, D] at `places` [n]; int8 and binary ones as float32 that are stored as the same."""
        rows, numbers = np.divmod(places, len(self._columns))
        batches = np.searchsorted(self._first_rows, rows, side="right") - 1
        vectors = np.empty((len(places), self.output.dims), dtype=np.float32)
        for batch, number in {*zip(batches.tolist(), numbers.tolist(), strict=True)}:
            own = np.flatnonzero((batches == batch) & (numbers == number))
            values, _ = self.output.vectors(self._batches[batch], self._columns[number][1])
            values = values[rows[own] - self._first_rows[batch]]
            vectors[own] = from_values(values, self.output.vector_dtype, self.output.ranges)
        return vectors


def as_halves(hashes: pa.Array) -> Hashes:
    """Return a column of hashes [n] as integers [n, 2]; those of nulls have no meaning."""
    begin = hashes.offset * HASH_BYTES
    data = hashes.buffers()[1]
    if data is None:
        return np.zeros((len(hashes), 2), dtype=np.uint64)
    return np.frombuffer(data, dtype=np.uint64, count=2 * len(hashes), offset=begin).reshape(-1, 2)
