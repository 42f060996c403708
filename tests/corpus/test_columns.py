from datetime import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import types

from fastvec.corpus.columns import check, decoded, is_binary, is_string, plain_type, repaired, row_bytes

WORDS = ["a", "bé", None, "", "twenty bytes, no view", "yy"]
COLUMNS: list[tuple[pa.DataType, list[Any]]] = [
    (pa.string(), WORDS),
    (pa.large_string(), WORDS),
    (pa.string_view(), WORDS),
    (pa.string_view(), []),
    (pa.dictionary(pa.int8(), pa.string()), WORDS),
    (pa.binary(), [b"a", None, b"\xff\xff"]),
    (pa.binary_view(), [b"a", None, b"\xff" * 30]),
    (pa.binary(2), [b"ab", None]),
    (pa.list_(pa.string()), [["a", "bb"], None, [], [None, "c"]]),
    (pa.large_list(pa.string_view()), [["a", "bb"], None, [], [None, "c"]]),
    (pa.list_(pa.list_(pa.int32())), [[[1, 2], []], None, [[3]], [None]]),
    (pa.list_(pa.dictionary(pa.int32(), pa.string())), [["a", "bb"], None, ["a"]]),
    (pa.list_(pa.field("element", pa.string(), nullable=False)), [["a", "bb"], []]),
    (pa.list_(pa.string(), 2), [["a", "bb"], None, ["c", None]]),
    (pa.list_(pa.int8(), 0), [[], None]),
    (pa.struct([("a", pa.string()), ("b", pa.list_(pa.int8()))]), [{"a": "x", "b": [1]}, None, {"a": None, "b": None}]),
    (pa.map_(pa.string(), pa.int32()), [[("k", 1), ("kk", 2)], None, []]),
    (pa.timestamp("us", tz="UTC"), [datetime.fromisoformat("2020-01-01T00:00:00Z"), None]),
    (pa.decimal128(10, 2), [Decimal("1.23"), None]),
    (pa.bool_(), [True, None]),
    (pa.float16(), [1.5, None]),
    (pa.null(), [None, None]),
]


def bytes_of(value: Any, type: pa.DataType) -> int:
    """The definition: the size in bytes of a single value."""
    if types.is_dictionary(type):
        return bytes_of(value, type.value_type)
    if types.is_struct(type):
        return sum(bytes_of(value and value[field.name], field.type) for field in type)
    if is_string(type):
        return len((value or "").encode())
    if is_binary(type):
        return len(value or b"")
    if types.is_map(type):
        return sum(bytes_of(key, type.key_type) + bytes_of(item, type.item_type) for key, item in value or [])
    if types.is_nested(type):
        return sum(bytes_of(item, type.value_type) for item in value or [])
    return 1 if types.is_null(type) else max(type.bit_width // 8, 1)


@pytest.mark.parametrize(("type", "values"), COLUMNS, ids=[str(type) for type, _ in COLUMNS])
def test_every_slice_of_a_column_is_sized_and_decoded_by_its_values_alone(type: pa.DataType, values: list[Any]) -> None:
    array = pa.concat_arrays([pa.array(values[:1], type), pa.array(values, type)])
    values = values[:1] + values

    for start in range(len(values) + 1):
        for end in range(start, len(values) + 1):
            rows = array.slice(start, end - start)
            plain = decoded(rows, plain_type(type))
            plain.validate(full=True)
            check(rows)

            assert row_bytes(rows).tolist() == [bytes_of(value, type) for value in values[start:end]]
            assert plain.type == plain_type(type)
            assert plain.to_pylist() == rows.to_pylist()


def test_what_lies_under_a_null_is_not_counted() -> None:
    all_null, offsets = pa.py_buffer(b"\0"), pa.array([0, 6], pa.int32()).buffers()[1]
    strings = pa.Array.from_buffers(pa.string(), 1, [all_null, offsets, pa.py_buffer(b"hidden")])
    lists = pa.ListArray.from_arrays([0, 1], pa.array(["hidden"]), mask=pa.array([True]))

    assert row_bytes(strings).tolist() == [0]
    assert row_bytes(lists).tolist() == [0]


@pytest.mark.parametrize(
    ("type", "plain"),
    [
        (pa.dictionary(pa.int32(), pa.string_view()), pa.string()),
        (pa.dictionary(pa.int32(), pa.int64()), pa.int64()),
        (pa.large_string(), pa.large_string()),
        (pa.struct([pa.field("a", pa.string_view(), nullable=False)]), pa.struct([("a", pa.string())])),
        (pa.uuid(), pa.uuid()),
        (pa.timestamp("ns", "Europe/Paris"), pa.timestamp("ns", "Europe/Paris")),
    ],
    ids=str,
)
def test_plain_types_have_no_dictionaries_and_no_views(type: pa.DataType, plain: pa.DataType) -> None:
    assert plain_type(type) == plain


@pytest.mark.parametrize(
    "type",
    [pa.run_end_encoded(pa.int32(), pa.string()), pa.list_view(pa.int8()), pa.list_(pa.dense_union([]))],
    ids=str,
)
def test_types_that_readers_refuse_have_no_plain_type(type: pa.DataType) -> None:
    with pytest.raises(TypeError, match="cannot be written to the output: cast the column, or do not keep it"):
        plain_type(type)


def test_extension_columns_are_sized_and_kept() -> None:
    array = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0123456789abcdef", None], pa.binary(16)))

    assert row_bytes(array).tolist() == [16, 16]
    assert decoded(array, plain_type(array.type)).equals(array)


@pytest.mark.parametrize("type", [pa.string(), pa.large_string()], ids=str)
def test_invalid_utf8_is_repaired_and_counted(type: pa.DataType) -> None:
    binary = pa.large_binary() if types.is_large_string(type) else pa.binary()
    values = [b"good", b"\xff", None, b"", b"cut \xe2\x82", b"surrogate \xed\xa0\x80!", "\ufffd".encode()]

    texts, count = repaired(pa.array(values, binary).view(type))

    assert texts.to_pylist() == ["good", "�", None, "", "cut �", "surrogate ���!", "�"]
    assert (texts.type, count) == (type, 3)


def test_valid_text_is_not_copied() -> None:
    array = pa.array(["valid", None])

    assert repaired(array)[0] is array


def test_offsets_that_point_outside_are_found() -> None:
    offsets = pa.array([0, 99], pa.int32()).buffers()[1]
    with pytest.raises(pa.ArrowException):
        check(pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"abc")]))
    with pytest.raises(pa.ArrowException):
        check(pa.DictionaryArray.from_arrays(pa.array([3]), pa.array(["a"]), safe=False))
