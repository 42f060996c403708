"""Rules for Arrow columns: which contain text, how many bytes a row takes, and with which type they are written.

The readers return a column in the encoding that is cheapest in memory (dictionary, view). `decoded` converts it to the
plain type that every consumer of an Arrow file can read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import types

VIEW_BYTES = 16  # one element of a string_view or binary_view; its first 4 bytes are the length


def is_string(type: pa.DataType) -> bool:
    """Return whether `type` is a string type, also if dictionary-encoded or the storage of an extension type (JSON)."""
    return _value_type(type) in (pa.string(), pa.large_string(), pa.string_view())


def is_binary(type: pa.DataType) -> bool:
    """Return whether `type` is variable-length binary, dictionary-encoded or not; its values are read as UTF-8 text."""
    return _value_type(type) in (pa.binary(), pa.large_binary(), pa.binary_view())


def holds_text(type: pa.DataType) -> bool:
    """Return whether a column of `type` can be embedded; some writers use type null if all values are null."""
    return is_string(type) or is_binary(type) or types.is_null(type)


def _value_type(type: pa.DataType) -> pa.DataType:
    value = type.value_type if types.is_dictionary(type) else type
    return value.storage_type if isinstance(value, pa.BaseExtensionType) else value


def path_to(schema: pa.Schema | pa.StructType, name: str) -> tuple[str, ...] | None:
    """Return the path to the column `name`, or to the struct field with that dotted name; None if there is neither."""
    if schema.get_field_index(name) >= 0:  # negative also if two fields have this name
        return (name,)
    for dot in (i for i, character in enumerate(name) if character == "."):
        path = path_to(schema, name[:dot])
        if path == (name[:dot],) and types.is_struct(schema.field(name[:dot]).type):
            below = path_to(schema.field(name[:dot]).type, name[dot + 1 :])
            if below is not None:
                return path + below
    return None


def field_at(schema: pa.Schema, path: tuple[str, ...]) -> pa.Field:
    """Return the field at a path from `path_to`; it is nullable if it or a struct that contains it is."""
    field = schema.field(path[0])
    for name in path[1:]:
        below = field.type.field(name)
        field = below.with_nullable(below.nullable or field.nullable)
    return field


def array_at(batch: pa.RecordBatch, path: tuple[str, ...]) -> pa.Array:
    """Return the values at a path from `path_to`; they are null where a struct that contains them is null.

    Raises pa.ArrowException if the buffers are damaged (see `check`).
    """
    array = batch[path[0]]
    for name in path[1:]:
        array.validate()  # the struct's own buffers; `check` validates those of the field
        array = pc.struct_field(array, name)
    check(array)
    return array


def paths_to(schema: pa.Schema, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the path to each of the named columns, by `path_to`."""
    return {name: path_to(schema, name) or (name,) for name in names}


def select(batch: pa.RecordBatch, paths: Mapping[str, tuple[str, ...]]) -> pa.RecordBatch:
    """Return the validated columns at `paths`; without columns, the batch still has its number of rows."""
    if not paths:
        return batch.select([])
    return pa.RecordBatch.from_arrays([array_at(batch, path) for path in paths.values()], list(paths))


def with_bad_rows(batch: pa.RecordBatch, bad: NDArray[np.bool_]) -> pa.RecordBatch:
    """Append a last column, which is true for rows that could not be read."""
    return batch.append_column("", pa.array(bad))


def plain_type(type: pa.DataType) -> pa.DataType:
    """Return the type that a kept column is written with: no dictionaries, no views, nested fields nullable.

    Raises TypeError for a type whose decoded size cannot be determined or that common readers do not support.
    """
    if types.is_dictionary(type):
        return plain_type(type.value_type)
    if types.is_string_view(type):
        return pa.string()
    if types.is_binary_view(type):
        return pa.binary()
    if types.is_map(type):
        return pa.map_(plain_type(type.key_type), plain_type(type.item_type))
    if types.is_struct(type):
        return pa.struct([(field.name, plain_type(field.type)) for field in type])
    if types.is_list(type):
        return pa.list_(plain_type(type.value_type))
    if types.is_large_list(type):
        return pa.large_list(plain_type(type.value_type))
    if types.is_fixed_size_list(type):
        return pa.list_(plain_type(type.value_type), type.list_size)
    if isinstance(type, pa.BaseExtensionType):
        return type if plain_type(type.storage_type) == type.storage_type else plain_type(type.storage_type)
    unknown_to_pyarrow = str(type) in ("month_interval", "day_time_interval")  # pyarrow has no array class for them
    if types.is_nested(type) or types.is_run_end_encoded(type) or unknown_to_pyarrow:  # nested: unions, list views
        raise TypeError(f"type {type} cannot be written to the output: cast the column, or do not keep it")
    return type


def decoded(array: pa.Array, type: pa.DataType) -> pa.Array:
    """Cast `array` to `type`, a plain type. Decodes only the rows of this slice; copies nothing if the types match."""
    if array.type == type:
        return array
    if isinstance(array.type, pa.BaseExtensionType):
        return decoded(array.storage, type)
    if types.is_dictionary(array.type):
        return array.dictionary.cast(type).take(array.indices)
    return array.cast(type)


def row_bytes(array: pa.Array) -> NDArray[np.int64]:
    """Return the decoded size of each row [n] in bytes, without offsets and validity bitmaps.

    It depends only on the values, never on their encoding in a file. In a variable-size column a null takes 0 bytes.
    """
    type = array.type
    if isinstance(type, pa.BaseExtensionType):
        return row_bytes(array.storage)
    if types.is_dictionary(type):
        # an index that is null takes 0 bytes; asking which are valid ends the process if the dictionary is of type null
        sizes: NDArray[np.int64] = pa.array(row_bytes(array.dictionary)).take(array.indices).fill_null(0).to_numpy()
        return sizes
    if type in (pa.string_view(), pa.binary_view()):
        end = array.offset + len(array)
        views = np.frombuffer(array.buffers()[1] or b"", dtype=np.int32, count=end * VIEW_BYTES // 4)
        return _where_valid(array, views[:: VIEW_BYTES // 4][array.offset :])
    if is_string(type) or is_binary(type):
        return _where_valid(array, pc.binary_length(array).fill_null(0).to_numpy())
    if types.is_struct(type):
        return sum((row_bytes(field) for field in array.flatten()), start=np.zeros(len(array), dtype=np.int64))
    if types.is_fixed_size_list(type):
        values = array.values.slice(array.offset * type.list_size, len(array) * type.list_size)
        return _where_valid(array, row_bytes(values).reshape(len(array), type.list_size).sum(axis=1))
    if types.is_nested(type):  # list, large_list, map
        return _list_bytes(array)
    return np.full(len(array), 1 if types.is_null(type) else max(type.bit_width // 8, 1), dtype=np.int64)


def _list_bytes(array: pa.Array) -> NDArray[np.int64]:
    offsets = array.offsets.to_numpy()
    begin, end = offsets[0], offsets[-1]
    columns = [array.keys, array.items] if types.is_map(array.type) else [array.values]
    sizes = sum((row_bytes(values.slice(begin, end - begin)) for values in columns), start=np.int64(0))
    ends = np.concatenate([[0], np.cumsum(sizes)])[offsets - begin]
    return _where_valid(array, np.diff(ends))


def _where_valid(array: pa.Array, sizes: NDArray[Any]) -> NDArray[np.int64]:
    if array.null_count == 0:
        return sizes.astype(np.int64, copy=False)
    return np.where(array.is_valid().to_numpy(zero_copy_only=False), sizes, 0).astype(np.int64, copy=False)


def check(array: pa.Array) -> None:
    """Raise pa.ArrowException if offsets, views or dictionary indices point outside their buffers.

    Invalid UTF-8 passes in a string column, because `repaired` replaces it, but not inside lists and structs.
    """
    if isinstance(array.type, pa.BaseExtensionType):
        check(array.storage)
    elif types.is_dictionary(array.type):
        check(array.dictionary)
        array.indices.validate(full=True)
        pa.DictionaryArray.from_arrays(array.indices, array.dictionary, safe=True)  # raises if an index is out of range
    else:
        _as_bytes(array).validate(full=True)


def _as_bytes(array: pa.Array) -> pa.Array:
    if types.is_string(array.type):
        return array.view(pa.binary())
    if types.is_large_string(array.type):
        return array.view(pa.large_binary())
    if types.is_string_view(array.type):
        return array.view(pa.binary_view())
    return array


def repaired(array: pa.Array) -> tuple[pa.Array, int]:
    """Replace invalid UTF-8 in a string array by U+FFFD; returns the array and the number of values changed.

    The whole array is validated at once. Rows are decoded one by one only if that fails.
    """
    if isinstance(array.type, pa.BaseExtensionType):
        storage, count = repaired(array.storage)
        return pa.ExtensionArray.from_storage(array.type, storage), count
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        values: list[bytes | None] = array.cast(pa.large_binary()).to_pylist()
        texts = [value if value is None else value.decode(errors="replace") for value in values]
        count = sum(text is not None and text.encode() != value for text, value in zip(texts, values, strict=True))
        return pa.array(texts, array.type), count
    return array, 0
