"""Reads JSON lines: one object per line, as pyarrow parses it.

The columns and their types are those of the file's first lines. A line that is no object of these types is a bad row:
all its columns are null. Strings that look like dates stay strings, and a number is one among strings.
"""

import functools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import json as arrow_json
from pyarrow import types

from fastvec.corpus.columns import paths_to, select, with_bad_rows
from fastvec.corpus.formats.errors import EmptyFileError
from fastvec.corpus.formats.lines import LineFile
from fastvec.errors import InputError

SAMPLE_BYTES = 16 << 20  # from which the columns are inferred: enough for fields that few lines have
MOST_FIELDS = 10_000  # after which no more are inferred: some files have identifiers as keys, others in each line
MOST_DEPTH = 200  # of nesting, in a line from which columns are inferred
# pyarrow gives each line a value of each field of the lines that it parses together: most of them nulls, if each line
# has other fields
SAMPLE_LINES = 32  # that columns are inferred from together
MOST_VALUES = 1 << 20  # of lines that are read together
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True, slots=True)
class JsonLines:
    """The objects of a file of JSON lines."""

    marks_bad_rows: ClassVar[bool] = True
    file: LineFile
    inferred: pa.Schema  # of type null where all lines are
    schema: pa.Schema

    @classmethod
    def of_types(cls, file: LineFile, inferred: Iterable[tuple[str, pa.DataType]]) -> "JsonLines":
        types_of_fields = list(inferred)
        text_for_nulls = [(name, _without_nulls(type)) for name, type in types_of_fields]
        return cls(file, pa.schema(types_of_fields), pa.schema(text_for_nulls))

    @classmethod
    def open(cls, file: LineFile) -> "JsonLines":
        """Infer the columns from the first lines.

        Raises InputError if none of them is an object.
        """
        inferred: dict[str, pa.DataType] = {}
        count = 0
        for lines in _sample(file):
            for field in chain.from_iterable(_schemas(lines)):
                known, type = inferred.get(field.name), _without_dates(field.type)
                if known != type:
                    inferred[field.name] = both = type if known is None else _unified(known, type)
                    count += _field_count(both) - (0 if known is None else _field_count(known))
            if count > MOST_FIELDS:
                break
        if not file.groups:
            raise EmptyFileError(file.path, "no line has an object")
        if not inferred:
            raise InputError(f"{file.path}: {_what_is_wrong(next(file.batches())[0].strip())}")
        return cls.of_types(file, inferred.items())

    @property
    def seeks(self) -> bool:
        """See `LineFile.seeks`."""
        return self.file.seeks

    @property
    def group_rows(self) -> tuple[int, ...]:
        return self.file.group_rows

    def read(self, columns: Sequence[str], first_group: int, skip: int) -> Iterator[pa.RecordBatch]:
        """Yield the named columns, from row `skip` of group `first_group` on, and a last column that marks bad rows."""
        paths = paths_to(self.schema, columns)
        schema = pa.schema([self.schema.field(top) for top in dict.fromkeys(path[0] for path in paths.values())])
        together = MOST_VALUES // max(sum(_field_count(field.type) for field in schema), 1) or 1
        for lines in self.file.batches(first_group, skip):
            for some in _divided(lines, together):
                parts = list(_parsed(some, schema))
                rows = pa.concat_batches([part for part, _ in parts])
                yield with_bad_rows(select(rows, paths), np.concatenate([bad for _, bad in parts]))

    def places(self, rows: Sequence[int]) -> Iterator[dict[str, int]]:
        """Yield the line number of each of `rows`, which ascend."""
        return ({"line": number} for number in self.file.numbers(rows))


def with_common_types(files: Sequence[JsonLines], fields: Collection[str]) -> list[JsonLines]:
    """Return the files with one type for each of `fields` in all of them, such as float64 for int64 and float64.

    A field that is null in all lines of a file has the type that it has in the others. Types that exclude each other
    stay as they are.
    """
    found: dict[str, dict[pa.DataType, None]] = {name: {} for name in fields}
    for file in files:
        for field in file.inferred:
            if field.name in found:
                found[field.name][field.type] = None
    common: dict[str, pa.DataType] = {}
    for name, types_of_field in found.items():
        with suppress(pa.ArrowException):
            common[name] = functools.reduce(_promoted, types_of_field, pa.null())

    return [
        JsonLines.of_types(file.file, [(field.name, common.get(field.name, field.type)) for field in file.inferred])
        for file in files
    ]


def _divided(lines: Sequence[bytes], together: int) -> Iterator[list[bytes]]:
    """Yield the lines, without white space around them, so many at a time."""
    for begin in range(0, len(lines), together):
        yield [line.strip() for line in lines[begin : begin + together]]


def _sample(file: LineFile) -> Iterator[list[bytes]]:
    """Yield the lines that columns are inferred from."""
    size = 0
    for lines in file.batches() if file.groups else ():
        yield from _divided(lines, SAMPLE_LINES)
        size += sum(map(len, lines))
        if size > SAMPLE_BYTES:
            break


def _parsed(
    lines: Sequence[bytes], schema: pa.Schema, *, rewritten: bool = False
) -> Iterator[tuple[pa.RecordBatch, npt.NDArray[np.bool_]]]:
    """Yield the rows of `lines` in parts, and which of them are bad.

    The lines are parsed together; if that fails, `rewritten`, and if that fails too, by halves. They cannot be shifted:
    JSON allows no `}` before a `{` with only white space between, so no object spans lines that all begin with `{` and
    end with `}`. Then each line has at least one object, and none has two if there are as many objects as lines.
    """
    with suppress(pa.ArrowInvalid):
        if all(_may_be_object(line) for line in lines):
            rows = _objects(lines, schema)
            if rows.num_rows == len(lines):
                yield rows, np.zeros(len(lines), dtype=np.bool_)
                return
    if not rewritten:
        yield from _parsed([_rewritten(line, schema) for line in lines], schema, rewritten=True)
    elif len(lines) > 1:
        middle = len(lines) // 2
        yield from _parsed(lines[:middle], schema, rewritten=True)
        yield from _parsed(lines[middle:], schema, rewritten=True)
    else:
        nothing = pa.RecordBatch.from_arrays([pa.nulls(1, field.type) for field in schema], schema=schema)
        yield nothing, np.ones(1, dtype=np.bool_)


def _may_be_object(line: bytes) -> bool:
    return line.startswith(b"{") and line.endswith(b"}")


def _is_shallow(line: bytes) -> bool:
    """Return whether the line can be inferred from: 100,000 arrays inside each other end pyarrow's process."""
    if line.count(b"[") + line.count(b"{") <= MOST_DEPTH:
        return True
    brackets = np.frombuffer(STRING.sub(b"", line), dtype=np.uint8)
    opened = np.isin(brackets, list(b"[{")).astype(np.int64) - np.isin(brackets, list(b"]}"))
    return bool(np.cumsum(opened).max() <= MOST_DEPTH)


def _objects(lines: Sequence[bytes], schema: pa.Schema | None) -> pa.RecordBatch:
    data = b"\n".join(lines)
    table = arrow_json.read_json(
        pa.BufferReader(data),
        read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=arrow_json.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "ignore"
        ),
    )
    return table.combine_chunks().to_batches()[0]


class _Number(str):
    """A number as it is written."""

    __slots__ = ()


def _rewritten(line: bytes, schema: pa.Schema) -> bytes:
    """Return an object that only Python reads (lone surrogates, 1e999, a repeated name) as pyarrow reads it.

    A number or a truth value is a text where the column is one. A lone surrogate becomes invalid UTF-8, which is
    repaired and counted later. Any other line is returned as it is.
    """
    try:
        value = json.loads(line, parse_int=_Number, parse_float=_Number)
        fitting = _fitting(value, pa.struct(list(schema)))
        return json.dumps(fitting, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return line


def _fitting(value: Any, type: pa.DataType | None) -> Any:
    """Return a value of JSON with text for numbers and truth values where `type` has it; None fits anything."""
    if isinstance(value, dict):
        known = {field.name: field.type for field in type} if type is not None and types.is_struct(type) else {}
        return {name: _fitting(one, known.get(name)) for name, one in value.items()}
    if isinstance(value, list):
        of_items = type.value_type if type is not None and types.is_list(type) else None
        return [_fitting(one, of_items) for one in value]
    is_text = type is not None and types.is_string(type)
    if isinstance(value, _Number):
        return str(value) if is_text else int(value) if value.lstrip("-").isdecimal() else float(value)
    return json.dumps(value) if is_text and isinstance(value, bool) else value


def _schemas(lines: Sequence[bytes]) -> Iterator[pa.Schema]:
    """Yield the schemas of `lines`: a single one, if their types agree."""
    with suppress(pa.ArrowInvalid):
        if all(_may_be_object(line) and _is_shallow(line) for line in lines):
            yield _objects(lines, None).schema
            return
    if len(lines) > 1:
        middle = len(lines) // 2
        yield from _schemas(lines[:middle])
        yield from _schemas(lines[middle:])


def _unified(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """Return the type of values of both types; of two types that exclude each other, the first."""
    with suppress(pa.ArrowException):
        return _promoted(first, second)
    return first


def _promoted(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """Return the type of values of both types, text for a text and a number. Raises ArrowException if there is none."""
    if pa.string() in (first, second) and not (types.is_nested(first) or types.is_nested(second)):
        return pa.string()
    schemas = [pa.schema([("", type)]) for type in (first, second)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _without_dates(type: pa.DataType) -> pa.DataType:
    """Return the type with strings for dates, which JSON does not have."""
    return _with_strings(type, types.is_timestamp)


def _without_nulls(type: pa.DataType) -> pa.DataType:
    """Return the type with strings for what was null in all lines, and may become any text."""
    return _with_strings(type, types.is_null)


def _with_strings(type: pa.DataType, instead_of: Callable[[pa.DataType], bool]) -> pa.DataType:
    if instead_of(type):
        return pa.string()
    if types.is_list(type):
        return pa.list_(_with_strings(type.value_type, instead_of))
    if types.is_struct(type):
        return pa.struct([(field.name, _with_strings(field.type, instead_of)) for field in type])
    return type


def _field_count(type: pa.DataType) -> int:
    """Return how many values a row of the type has, if each list has one."""
    return sum(_field_count(type.field(i).type) for i in range(type.num_fields)) if types.is_nested(type) else 1


def _what_is_wrong(first: bytes) -> str:
    if first.startswith(b"["):
        return "a JSON array, not one object per line; convert it: jq -c '.[]' FILE > FILE.jsonl"
    if first.startswith(b"{") and not first.endswith(b"}"):
        return "the first lines are not one JSON object each; convert it: jq -c . FILE > FILE.jsonl"
    return f"no JSON object in the first lines (the first begins with {first[:20]!r}); expected one object per line"
