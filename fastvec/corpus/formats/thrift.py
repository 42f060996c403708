"""Decodes structs of Thrift's compact protocol, such as Parquet's page headers, without their schema."""

from dataclasses import dataclass
from typing import Any

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
INTEGERS = (I16, I32, I64)
MOST_BITS = 70  # of an integer in groups of seven


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
    """Reads values from `data`; `position` is the offset of the next one.

    Raises IndexError if a value ends after the data, and ValueError or RecursionError for what Parquet never has.
    """

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data, self.position = data, position

    def struct(self) -> list[Field]:
        """Read a struct up to its end marker."""
        fields: list[Field] = []
        last = 0
        while head := self._byte():
            last = last + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            fields.append(Field(last, kind, kind == TRUE if kind in (TRUE, FALSE) else self._value(kind)))
        return fields

    def list_places(self, number: int) -> list[int]:
        """Go through a struct; return the offset of each item of the list of structs that is field `number`."""
        places: list[int] = []
        last = 0
        while head := self._byte():
            last = last + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            if last == number and kind == LIST:
                places.clear()  # of a repeated field the last one counts
                item, count = self._items()
                for _ in range(count):
                    places.append(self.position)
                    self._skip(item)
            elif kind not in (TRUE, FALSE):
                self._skip(kind)
        return places

    def _skip(self, kind: int) -> None:
        """Go past a value. Several times faster than `_value`, for footers of megabytes."""
        if kind in INTEGERS:
            data, position = self.data, self.position
            while data[position] & 0x80:
                position += 1
            self.position = position + 1
        elif kind == STRUCT:
            while head := self._byte():
                if not head >> 4:
                    self._skip(I16)  # the number of the field
                if head & 15 not in (TRUE, FALSE):
                    self._skip(head & 15)
        elif kind in (LIST, SET):
            item, count = self._items()
            for _ in range(count):
                self._skip(item)
        else:
            self._value(kind)

    def _items(self) -> tuple[int, int]:
        """Read what a list begins with: the kind and the number of its items."""
        head = self._byte()
        return head & 15, head >> 4 if head >> 4 < 15 else self._varint()

    def _value(self, kind: int) -> Any:
        if kind in INTEGERS:
            return self._integer()
        if kind == BINARY:
            return self._raw(self._varint())
        if kind == STRUCT:
            return self.struct()
        if kind in (LIST, SET):
            item, count = self._items()
            return Items(item, [self._value(item) for _ in range(count)])
        if kind in (TRUE, FALSE, BYTE):
            return self._byte()
        if kind == DOUBLE:
            return self._raw(8)
        raise ValueError(f"Parquet has no values of kind {kind}")

    def _byte(self) -> int:
        self.position += 1
        return self.data[self.position - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift >= MOST_BITS:
                raise ValueError("an integer of more than 64 bits")
        return value | byte << shift

    def _raw(self, size: int) -> bytes:
        begin, self.position = self.position, self.position + size
        if self.position > len(self.data):
            raise IndexError("a value that ends after the data")
        return self.data[begin : self.position]

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
