"""Reads the texts that a caller gives, in a list, an array or a column, as a list of strings.

pandas and polars are recognized by their methods and never imported.
"""

from collections.abc import Sequence, Sized
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from fastvec.corpus.columns import decoded, holds_text, repaired
from fastvec.errors import UsageError

# a list, tuple, NumPy array, pandas or polars Series, Arrow array, or any other sequence of strings
Texts: TypeAlias = Sequence[str] | Sized


def read_texts(values: Any) -> list[str]:
    """Return `values` as a list of strings; raises UsageError if one of them is not a string, or null."""
    texts = _values(values)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise UsageError(f"text {index} is a {type(text).__name__}, not a string: leave it out or fill it in")
    return texts


def read_column(column: pa.Array | pa.ChunkedArray) -> list[str | None]:
    """Return the texts of an Arrow column; null is None, invalid UTF-8 becomes U+FFFD.

    Raises UsageError if the column's type is neither string nor binary.
    """
    if not holds_text(column.type):
        raise UsageError(f"expected strings, got Arrow values of type {column.type}: give the column with the texts")
    texts: list[str | None] = []
    for array in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        texts += repaired(decoded(array, pa.large_binary()).view(pa.large_string()))[0].to_pylist()
    return texts


def _values(values: Any) -> list[Any]:
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return read_column(values)
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise UsageError(f"expected an array of one dimension, got {values.ndim}: give the texts as values[n]")
        return list(values.tolist())
    if hasattr(values, "to_list"):  # pandas and polars Series
        return list(values.to_list())
    if isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        return list(values)
    if hasattr(values, "__arrow_c_stream__"):
        return read_column(pa.chunked_array(values))
    if hasattr(values, "__arrow_c_array__") or hasattr(values, "__arrow_array__"):
        return read_column(pa.array(values))
    raise UsageError(f"expected texts in a list, an array or a column, got a value of type {type(values).__name__}")
