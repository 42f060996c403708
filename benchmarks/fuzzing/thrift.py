"""Encodes structs of Thrift's compact protocol that fastvec decoded."""

from typing import Any

from fastvec.corpus.formats.thrift import BINARY, BYTE, FALSE, INTEGERS, LIST, SET, STRUCT, TRUE, Field


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
