"""Parses `--filter`: a condition on the kept columns of an output, written as in Python.

    year >= 1990 and lang in ('en', 'de')        a comparison, `and`, `or`, `not`, `in`, parentheses
    title is not None                            a value that is there
    meta.source == 'web'                         a field of a struct
    `a column` == 1                              a name that is not an identifier

It becomes an expression of pyarrow; no code is run.
"""

import ast
import operator
import re
from collections.abc import Callable
from datetime import time
from functools import reduce
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fastvec.errors import UsageError, one_line, quoted

_QUOTED = re.compile(r"`([^`]+)`")
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ASSIGNED = re.compile(r"[^=!<>]=[^=]")
EXAMPLE = "such as: year >= 1990 and lang in ('en', 'de')"


class Filter:
    """A condition on a row. `columns` are those that it needs.

    Raises UsageError for what is not one, and for a column that is not in the schema.
    """

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self.text = text
        self._schema = schema
        self._names: dict[str, str] = {}  # of the columns in backquotes, by their place in the text
        self._used: dict[str, None] = {}
        try:
            tree = ast.parse(_QUOTED.sub(self._placeholder, text.strip()), mode="eval")
            self._expression = self._condition(tree.body)
            if not self._used:
                raise ValueError("it names no column")
        except (SyntaxError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else one_line(error)
            reason = "compare with ==" if _ASSIGNED.search(text) else reason
            raise UsageError(f"the filter {quoted(text)} is not a condition ({reason}): write one {EXAMPLE}") from None

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._used)

    def mask(self, table: pa.Table) -> pa.Array:
        """Return for each row of `table`, which has `columns`, whether the condition holds; not where it is null.

        Raises UsageError if the condition cannot be computed, such as one that compares a text with a number.
        """
        try:
            schema = pa.schema([self._schema.field(name).remove_metadata() for name in self.columns])
            # in the types of all outputs, if one has no field of a struct, or nulls alone
            table = pa.concat_tables([schema.empty_table(), table.select(schema.names)], promote_options="permissive")
            numbered = table.append_column("", pa.array(range(table.num_rows), type=pa.int64()))
            found = numbered.filter(self._expression).column(numbered.num_columns - 1)
        except (pa.ArrowException, TypeError, ValueError) as error:
            types = ", ".join(f"{name} is {self._schema.field(name).type}" for name in self.columns)
            raise UsageError(
                f"the filter {quoted(self.text)} cannot be computed: {types}; {one_line(error)}"
            ) from error
        return pc.is_in(numbered.column(numbered.num_columns - 1), value_set=found).combine_chunks()

    def _placeholder(self, found: re.Match[str]) -> str:
        name = f"_quoted_{len(self._names)}_"
        self._names[name] = found[1]
        return name

    def _condition(self, node: ast.expr) -> pc.Expression:
        match node:
            case ast.BoolOp(op=joining, values=values):
                join = operator.and_ if isinstance(joining, ast.And) else operator.or_
                return reduce(join, map(self._condition, values))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self._condition(operand)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                operands = pairwise([left, *comparators])
                found = (self._comparison(a, op, b) for op, (a, b) in zip(ops, operands, strict=True))
                return reduce(operator.and_, found)
            case ast.Name() | ast.Attribute():
                return self._field(node)
        raise UsageError(
            f"the filter {quoted(self.text)} has {_shown(node)}, which is no condition: write one {EXAMPLE}"
        )

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise UsageError(f"the filter {quoted(self.text)} has `is` without None: compare with ==")
            missing = self._operand(left).is_null()
            return missing if isinstance(op, ast.Is) else ~missing
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.Tuple | ast.List | ast.Set):
                raise UsageError(f"the filter {quoted(self.text)} has `in` without values in parentheses, {EXAMPLE}")
            values = [self._constant(value, self._type(left)) for value in right.elts]
            column = self._operand(left)
            # as a comparison, null where the column is null: isin alone is false there, and its negation true
            found = pc.if_else(column.is_valid(), column.isin(values), pa.scalar(None, pa.bool_()))
            return found if isinstance(op, ast.In) else ~found
        return _COMPARISONS[type(op)](self._operand(left, right), self._operand(right, left))

    def _operand(self, node: ast.expr, other: ast.expr | None = None) -> pc.Expression:
        """Return a column, or a constant of the type of the column `other`."""
        if isinstance(node, ast.Name | ast.Attribute):
            return self._field(node)
        return pc.scalar(self._constant(node, self._type(other)))

    def _type(self, node: ast.expr | None) -> pa.DataType | None:
        """Return the type of a column of dates or times, which are written as texts; None of anything else."""
        if not isinstance(node, ast.Name | ast.Attribute):
            return None
        name, *path = self._path(node)
        type_ = self._schema.field(name).type
        for inner in path:
            index = type_.get_field_index(inner) if pa.types.is_struct(type_) else -1
            type_ = type_.field(index).type if index >= 0 else pa.null()
        return type_ if pa.types.is_temporal(type_) else None

    def _constant(self, node: ast.expr, type_: pa.DataType | None) -> Any:
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError):
            value = ...
        if not isinstance(value, str | int | float | bool | bytes | None):
            expected = "where a text, a number or a column is expected"
            raise UsageError(f"the filter {quoted(self.text)} has {_shown(node)}, {expected}")
        if isinstance(value, str):
            for name, column in self._names.items():  # a text may contain backquotes too
                value = value.replace(name, f"`{column}`")
        if type_ is None or not isinstance(value, str):
            return value
        try:
            return _temporal(value, type_)
        except (pa.ArrowException, ValueError) as error:
            raise UsageError(
                f"the filter {quoted(self.text)}: {quoted(value)} is no {type_}: {one_line(error)}"
            ) from None

    def _field(self, node: ast.expr) -> pc.Expression:
        name, *path = self._path(node)
        self._used[name] = None
        return pc.field(name, *path)

    def _path(self, node: ast.expr) -> list[str]:
        """Return the name of a column, with dots or without, and those of the fields inside it."""
        path: list[str] = []
        while isinstance(node, ast.Attribute):
            path.insert(0, node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            raise UsageError(
                f"the filter {quoted(self.text)} has {_shown(node)}: only columns and their fields have names"
            )
        path.insert(0, self._names.get(node.id, node.id))
        for length in range(len(path), 0, -1):
            if (name := ".".join(path[:length])) in self._schema.names:
                return [name, *path[length:]]
        known = ", ".join(self._schema.names) or "none"
        raise UsageError(f"the filter {quoted(self.text)} names the column {path[0]!r}; the outputs have {known}")


def _temporal(text: str, type_: pa.DataType) -> pa.Scalar:
    """Return the date or time that `text` says, in the column's time zone if it says none."""
    if pa.types.is_time(type_):
        return pa.scalar(time.fromisoformat(text), type_)
    if pa.types.is_timestamp(type_) and type_.tz is not None:
        try:
            return pa.scalar(text).cast(type_)
        except pa.ArrowException:  # expected a zone
            return pc.assume_timezone(pa.scalar(text).cast(pa.timestamp(type_.unit)), type_.tz)
    return pa.scalar(text).cast(type_)


def _shown(node: ast.expr) -> str:
    return quoted(ast.unparse(node))
