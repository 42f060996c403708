"""Decodes and encodes structs of Thrift's compact protocol, such as Parquet's footers, without their schema."""

from dataclasses import dataclass
from typing import Any

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
INTEGERS = (I16, I32, I64)


@dataclass(slots=True)
class Field:
    """A field of a struct. `value` is an int, bytes, a list of fields (a struct) or an Items."""

    id: int
    kind: int
    value: Any


@dataclass(slots=True)
class Items:
    """A list or set."""

    kind: int
    values: list[Any]


class Decoder:
    """Reads values from `data`; `position` is the offset of the next one."""

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data, self.position = data, position

    def byte(self) -> int:
        self.position += 1
        return self.data[self.position - 1]

    def varint(self) -> int:
        value = shift = 0
        while (byte := self.byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
        return value | byte << shift

    def raw(self, size: int) -> bytes:
        self.position += size
        return self.data[self.position - size : self.position]

    def integer(self) -> int:
        value = self.varint()
        return value >> 1 ^ -(value & 1)

    def struct(self) -> list[Field]:
        """Read a struct up to its end marker."""
        fields: list[Field] = []
        last = 0
        while head := self.byte():
            last = last + (head >> 4) if head >> 4 else self.integer()
            kind = head & 15
            fields.append(Field(last, kind, kind == TRUE if kind in (TRUE, FALSE) else self.value(kind)))
        return fields

    def value(self, kind: int) -> Any:
        """Read a value, of which the kind is known."""
        if kind in INTEGERS:
            return self.integer()
        if kind == BINARY:
            return self.raw(self.varint())
        if kind == STRUCT:
            return self.struct()
        if kind in (LIST, SET):
            head = self.byte()
            count = head >> 4 if head >> 4 < 15 else self.varint()
            return Items(head & 15, [self.value(head & 15) for _ in range(count)])
        if kind in (TRUE, FALSE, BYTE):
            return self.byte()
        if kind == DOUBLE:
            return self.raw(8)
        raise ValueError(f"Parquet has no values of kind {kind}")


def encode(fields: list[Field]) -> bytes:
    """Return a struct with its end marker. Integers are cut to 64 bits."""
    out = bytearray()
    for field in fields:
        kind = (TRUE if field.value else FALSE) if field.kind in (TRUE, FALSE) else field.kind
        out += bytes([kind]) + _integer(field.id)  # the long form, in which ids may come in any order
        if kind not in (TRUE, FALSE):
            out += _value(kind, field.value)
    return bytes(out) + b"\0"


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def _integer(value: int) -> bytes:
    return _varint((value << 1 ^ value >> 63) & (1 << 64) - 1)


def _value(kind: int, value: Any) -> bytes:
    if kind in INTEGERS:
        return _integer(value)
    if kind == BINARY:
        return _varint(len(value)) + bytes(value)
    if kind == STRUCT:
        return encode(value)
    if kind in (LIST, SET):
        count = len(value.values)
        head = bytes([count << 4 | value.kind]) if count < 15 else bytes([0xF0 | value.kind]) + _varint(count)
        return head + b"".join(_value(value.kind, item) for item in value.values)
    return bytes([value]) if kind in (TRUE, FALSE, BYTE) else bytes(value)
