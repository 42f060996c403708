"""Finds the type that holds the values of a column of several files, each without a loss."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from fastvec.errors import OutputError, one_line

MANTISSA_BITS = {16: 11, 32: 24, 64: 53}  # integers of so many bits are exact in a float, by its width


def unified(fields: Sequence[pa.Field]) -> pa.Field | None:
    """Return a field of a type that holds all values of the `fields`, which have one name; None if there is none.

    Arrow's own unification also makes floats of large integers, and signed integers of unsigned ones.
    """
    try:
        (found,) = pa.unify_schemas([pa.schema([field]) for field in fields], promote_options="permissive")
    except pa.ArrowException:  # such as of a number and a text
        return None
    return found if all(_holds(found.type, field.type) for field in fields) else None


def _holds(wide: pa.DataType, own: pa.DataType) -> bool:
    """Return whether a cast to `wide`, which Arrow made of `own` and other types, changes no value.

    It fails for no value but a time that a finer unit does not reach.
    """
    if wide == own or pa.types.is_null(own):
        return True
    if pa.types.is_integer(own) and pa.types.is_floating(wide):
        return bool(own.bit_width <= MANTISSA_BITS[wide.bit_width])
    if pa.types.is_integer(own) and pa.types.is_integer(wide):
        signs = pa.types.is_signed_integer(own), pa.types.is_signed_integer(wide)
        return bool(own.bit_width + (signs == (False, True)) <= wide.bit_width)
    if pa.types.is_struct(own) and pa.types.is_struct(wide):
        return all(_holds(wide.field(inner.name).type, inner.type) for inner in own)
    if own.num_fields == wide.num_fields:
        return all(_holds(wide.field(i).type, own.field(i).type) for i in range(own.num_fields))
    return True


@contextmanager
def casts_as_output_errors() -> Iterator[None]:
    """Turn the error of a cast to a unified type, as of a time that a finer unit does not reach, into OutputError."""
    try:
        yield
    except pa.ArrowException as error:
        raise OutputError(f"kept columns have values of no common type: {one_line(error)}") from error
