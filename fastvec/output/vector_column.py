"""Encodes vectors as an Arrow column: float32, float16, int8 with a range per dimension, or packed sign bits.

Shapes: n rows, D dimensions of a vector.
"""

import json
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.errors import UsageError

VectorDtype = Literal["float32", "float16", "int8", "binary"]
VECTOR_DTYPES: tuple[str, ...] = get_args(VectorDtype)
FloatArray = npt.NDArray[np.float32]

_VALUE_TYPES = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}
# the eight values of each byte of binary vectors
SIGNS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1


def column_type(dims: int, dtype: VectorDtype) -> pa.DataType:
    """Return the column's Arrow type: a fixed-size list of D values, or of D / 8 bytes for `binary`.

    Raises UsageError if `dtype` is binary and D is not a multiple of 8.
    """
    if dtype == "binary" and dims % 8:
        raise UsageError(f"binary vectors pack 8 dimensions into a byte, and {dims} is not a multiple of 8: set --dims")
    return pa.list_(_VALUE_TYPES[dtype], dims // 8 if dtype == "binary" else dims)


def ranges_of(vectors: FloatArray) -> FloatArray:
    """Return the largest magnitude of each dimension [D] over `vectors` [n, D]; 1 if all its values are 0 or n is 0."""
    largest = np.abs(vectors).max(axis=0, initial=0.0)
    return np.where(largest > 0, largest, 1.0).astype(np.float32)


def ranges_to_json(ranges: FloatArray) -> str:
    return json.dumps([float(value) for value in ranges])


def ranges_from_json(text: str | bytes) -> FloatArray:
    return np.array(json.loads(text), dtype=np.float32)


def from_values(values: npt.NDArray[Any], dtype: str, ranges: FloatArray | None = None) -> FloatArray:
    """Return the stored `values` of vectors [n, D], or [n, D / 8] if binary, as float32; `to_column` inverts this.

    The dimensions of binary vectors become 1 and -1.
    """
    if dtype == "binary":
        # a quarter of the time of arithmetic on bits
        return np.take(SIGNS, values, axis=0).reshape(len(values), 8 * values.shape[1])
    if dtype == "int8" and ranges is not None:
        return values.astype(np.float32) * (ranges / np.float32(127))
    return values.astype(np.float32)


def to_column(
    vectors: FloatArray, valid: npt.NDArray[np.bool_], dtype: VectorDtype, ranges: FloatArray | None = None
) -> pa.FixedSizeListArray:
    """Encode `vectors` [n, D] as a column. A row that is not `valid` [n] becomes null, with zeros as its values.

    int8 quantization is symmetric: round(value / range · 127); values beyond their range saturate at ±127.
    Raises ValueError for int8 without `ranges` [D].
    """
    vectors = np.where(valid[:, None], vectors, np.float32(0))
    if dtype == "int8":
        if ranges is None:
            raise ValueError("int8 vectors need the range of each dimension")
        values = np.clip(np.rint(vectors / ranges * 127), -127, 127).astype(np.int8)
    elif dtype == "binary":
        values = np.packbits(vectors > 0, axis=1)
    else:
        values = vectors.astype(dtype)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), type=column_type(vectors.shape[1], dtype), mask=pa.array(~valid)
    )
