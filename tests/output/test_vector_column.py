import numpy as np
import pyarrow as pa
import pytest

from fastvec.errors import UsageError
from fastvec.output.vector_column import column_type, ranges_from_json, ranges_of, ranges_to_json, to_column

VECTORS = np.array([[0.5, -0.25], [9.0, 9.0], [-1.0, 0.125]], dtype=np.float32)
VALID = np.array([True, False, True])


def test_floats_keep_their_values_and_an_invalid_row_is_a_null_that_shifts_nobody() -> None:
    for dtype in ("float32", "float16"):
        column = to_column(VECTORS, VALID, dtype)
        assert column.to_pylist() == [[0.5, -0.25], None, [-1.0, 0.125]]
        assert column.values.to_pylist() == [0.5, -0.25, 0.0, 0.0, -1.0, 0.125]


def test_int8_uses_the_range_of_each_dimension_and_saturates() -> None:
    ranges = ranges_of(VECTORS[VALID])
    assert ranges.tolist() == [1.0, 0.25]
    column = to_column(np.array([[0.5, -0.25], [4.0, 0.0]], dtype=np.float32), np.array([True, True]), "int8", ranges)
    assert column.to_pylist() == [[64, -127], [127, 0]]
    assert column.type == pa.list_(pa.int8(), 2)


def test_a_dimension_that_is_always_zero_has_a_range() -> None:
    assert ranges_of(np.zeros((2, 2), dtype=np.float32)).tolist() == [1.0, 1.0]
    assert ranges_of(VECTORS[:0]).tolist() == [1.0, 1.0]


def test_ranges_survive_the_metadata_exactly() -> None:
    ranges = np.array([0.1, 1 / 3, 2e-7], dtype=np.float32)
    assert (ranges_from_json(ranges_to_json(ranges)) == ranges).all()


def test_binary_packs_signs_as_numpy_does() -> None:
    vector = np.array([[1, -1, 1, 1, -1, -1, 0, 1, 1, -1, -1, -1, -1, -1, -1, -1]], dtype=np.float32)
    column = to_column(vector, np.array([True]), "binary")
    assert column.type == pa.list_(pa.uint8(), 2)
    assert np.unpackbits(column.values.to_numpy()).tolist() == [1, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0]


def test_binary_needs_a_multiple_of_eight() -> None:
    with pytest.raises(UsageError, match="12 is not a multiple of 8: set --dims"):
        column_type(12, "binary")
