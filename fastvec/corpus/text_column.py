"""Chooses the text column of a table by types and names, and describes columns in errors."""

import pyarrow as pa
from pyarrow import types

from fastvec.corpus.columns import holds_text, is_binary, is_string
from fastvec.errors import InputError

TEXT_NAMES = ("text", "content", "body", "document", "passage", "sentence")


def text_column(schema: pa.Schema) -> tuple[str, str]:
    """Return the name of the text column, and the reason for this choice.

    If columns have usual names (TEXT_NAMES) but none of these contains text, one was probably meant to be the text: no
    other column is chosen instead. Raises InputError if no column can be chosen.
    """
    by_name = {field.name: field.type for field in schema}
    # a JSON column is chosen only by a usual name (or with --column); otherwise it is metadata
    strings = [n for n, type in by_name.items() if is_string(type) and not isinstance(type, pa.BaseExtensionType)]
    usual = [name for name in TEXT_NAMES if name in by_name]
    if len(strings) == 1 and (strings[0] in usual or not usual):
        return strings[0], "the only string column"
    for name in usual:
        # a column of type null is not chosen if there are string columns
        if holds_text(by_name[name]) and not (strings and types.is_null(by_name[name])):
            return name, "chosen by its name"
    some = any(is_string(type) or is_binary(type) for type in by_name.values())
    if usual:
        problem = f"column {usual[0]!r} is {short(by_name[usual[0]])}, not text"
        problem += "; give another column with --column" if some else ""
    elif some:
        problem = "cannot tell which column is the text; give it with --column"
    elif inside := _text_inside(schema):
        problem = f"no top-level column contains text; give a struct field, e.g. --column {inside}"
    else:
        problem = "no column contains text"
    raise InputError(f"{problem}. {columns_of(schema)}")


def columns_of(schema: pa.Schema) -> str:
    """List the columns in a sentence: at most 20 of them, with names and types shortened."""
    names = [f"{short(field.name, 40)} ({short(field.type)})" for field in schema]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"Its columns: {', '.join(names[:20])}{more}" if names else "It has no columns"


def _text_inside(schema: pa.Schema) -> str | None:
    """Return a string field of a struct, as --column would name it."""
    structs = (column for column in schema if types.is_struct(column.type))
    return next(
        (f"{column.name}.{below.name}" for column in structs for below in column.type if is_string(below.type)), None
    )


def short(name: str | pa.DataType, length: int = 30) -> str:
    """Return the name of a column or type, which can be of any length, cut to `length` characters."""
    text = str(name)
    return text if len(text) <= length else f"{text[: length - 1]}…"
