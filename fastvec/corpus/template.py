"""Templates: the text of a row, put together from its columns, e.g. `{title}\n{text}`.

`{name}` is a column, or with dots a field of a struct; `{{` and `}}` are braces. A null is an empty string, and the
text is null if all its columns are. A single column without anything around it is a template too: the simplest one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from fastvec.corpus.columns import decoded, holds_text
from fastvec.errors import InputError, UsageError, one_line


@dataclass(frozen=True, slots=True)
class Template:
    """`literals[0]`, `columns[0]`, `literals[1]` and so on; there is one literal more than columns."""

    name: str  # the column's, or the template as it was given
    literals: tuple[bytes, ...]
    columns: tuple[str, ...]

    @classmethod
    def of_column(cls, column: str) -> "Template":
        """Return the template whose texts are those of a column."""
        return cls(column, (b"", b""), (column,))

    @classmethod
    def parse(cls, template: str) -> "Template":
        """Parse a template. Raises UsageError if it names no column or has a lone brace."""
        literals, columns = [""], []
        try:
            for literal, field, format, conversion in Formatter().parse(template):
                literals[-1] += literal
                if field is not None:  # `!` and `:` have no meaning here: they are a part of the name
                    columns.append(field + (f"!{conversion}" if conversion else "") + (f":{format}" if format else ""))
                    literals.append("")
        except ValueError as error:
            raise UsageError(f"template {template!r}: {error}; write {{{{ and }}}} for braces") from error
        if not columns or "" in columns:
            raise UsageError(f"template {template!r} names no column between braces: write it as {{title}} {{text}}")
        try:
            return cls(template, tuple(literal.encode() for literal in literals), tuple(columns))
        except UnicodeEncodeError:
            raise UsageError(f"template {template!r} is not valid UTF-8") from None

    @property
    def is_column(self) -> bool:
        """Whether a column was named, not a template such as `{column}`, which takes numbers too."""
        return self.name == self.columns[0]

    def render(self, columns: Sequence[pa.Array]) -> pa.Array:
        """Return the texts, as large_binary [n], of `columns`, an array [n] for each of the template's columns."""
        texts = [_as_text(column) for column in columns]
        if self.literals == (b"", b""):
            return texts[0]
        parts = [pa.scalar(self.literals[0], pa.large_binary())]
        for text, literal in zip(texts, self.literals[1:], strict=True):
            parts += [text, pa.scalar(literal, pa.large_binary())]
        nothing = pa.scalar(b"", pa.large_binary())
        joined = pc.binary_join_element_wise(*parts, nothing, null_handling="replace", null_replacement=b"")
        some = texts[0].is_valid()
        for text in texts[1:]:
            some = pc.or_(some, text.is_valid())
        return pc.if_else(some, joined, pa.scalar(None, pa.large_binary()))


def can_render(type: pa.DataType) -> bool:
    """Return whether a template can contain a column of `type`: text, a number, a truth value, a date or a time."""
    value = type.value_type if types.is_dictionary(type) else type
    return (
        holds_text(type)
        or types.is_integer(value)
        or types.is_floating(value)
        or types.is_decimal(value)
        or types.is_boolean(value)
        or types.is_date(value)
        or types.is_time(value)
        or types.is_timestamp(value)
    )


def _as_text(column: pa.Array) -> pa.Array:
    if holds_text(column.type):
        return decoded(column, pa.large_binary())
    try:
        return decoded(column, pa.large_string()).view(pa.large_binary())
    except pa.ArrowException as error:  # e.g. a time zone that this machine does not know
        raise InputError(f"a column of type {column.type} cannot be written as text: {one_line(error)}") from error
