"""Checks the buffers of compressed Arrow messages before pyarrow decompresses them.

Each begins with its decompressed size, which pyarrow allocates: 100 KB of zstd can be gigabytes. The messages are
FlatBuffers; what follows from `_table` reads the few fields that say where the buffers are.
"""

import os
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
from pyarrow import ipc

from fastvec.errors import InputError
from fastvec.system.limits import memory_bytes

UNREADABLE = (pa.ArrowException, OSError, EOFError, struct.error)
TAIL = struct.Struct("<i6s")  # the length of a file's footer and ARROW1
BLOCK_BYTES, BUFFER_BYTES = 24, 16
# numbers of fields
MESSAGE_HEADER, BATCH_BUFFERS, BATCH_COMPRESSION = 2, 2, 3
DICTIONARY_ID, DICTIONARY_DATA, DICTIONARY_IS_DELTA = 0, 1, 2
FOOTER_BLOCKS = (2, 3)  # dictionaries, record batches


def check_buffers(path: Path, *, stream: bool) -> None:
    """Raise InputError for a compressed buffer, or dictionaries together, larger than the memory.

    A message that cannot be read is left to pyarrow, which names the problem.
    """
    memory = memory_bytes() or sys.maxsize
    held: dict[int, int] = {}  # by a dictionary's id: one that is no delta replaces the one before
    total = 0
    with pa.memory_map(os.fsencode(path)) as file:
        for message in _messages(file, stream):
            with suppress(*UNREADABLE):
                sizes = list(_decompressed(message))
                if message.type == "dictionary":
                    number, is_delta = _dictionary(message.metadata)
                    before = held.get(number, 0)
                    held[number] = sum(sizes) + before * is_delta
                    total += held[number] - before
                largest = max(total, *sizes, 0)
                if largest > memory:
                    raise InputError(
                        f"{path}: a column of a record batch, or the dictionaries, decompress to {largest:,} bytes, "
                        f"and the memory has {memory:,}: write smaller record batches, "
                        "in pandas with to_feather(path, chunksize=1000)"
                    )


def _messages(file: pa.NativeFile, stream: bool) -> Iterator[ipc.Message]:
    with suppress(*UNREADABLE):
        if stream:
            yield from ipc.MessageReader.open_stream(file)
            return
        size = file.size()
        length, _ = TAIL.unpack(file.read_at(TAIL.size, size - TAIL.size))
        footer = file.read_at(length, size - TAIL.size - length) if 0 < length < size - TAIL.size else b""
        for number in FOOTER_BLOCKS:
            for place, count in _vectors(footer, _root(footer), number):
                for block in range(min(count, len(footer) // BLOCK_BYTES)):
                    (offset,) = struct.unpack_from("<q", footer, place + block * BLOCK_BYTES)
                    file.seek(offset)
                    with suppress(*UNREADABLE):
                        yield ipc.read_message(file)


def _decompressed(message: ipc.Message) -> Iterator[int]:
    """Yield the decompressed size of each compressed buffer."""
    data, body = message.metadata, message.body
    header = _root(data)
    for table in _tables(data, header, MESSAGE_HEADER):
        batches = _tables(data, table, DICTIONARY_DATA) if message.type == "dictionary" else [table]
        for batch in batches:
            if message.type not in ("dictionary", "record batch") or not list(_tables(data, batch, BATCH_COMPRESSION)):
                continue
            for place, count in _vectors(data, batch, BATCH_BUFFERS):
                for buffer in range(min(count, len(data) // BUFFER_BYTES)):
                    offset, length = struct.unpack_from("<qq", data, place + buffer * BUFFER_BYTES)
                    if length >= 8 and 0 <= offset <= len(body) - 8:
                        yield struct.unpack_from("<q", body, offset)[0]


def _dictionary(data: pa.Buffer) -> tuple[int, bool]:
    """Return the id of a dictionary, and whether its values are added to those before."""
    number, is_delta = 0, False
    for table in _tables(data, _root(data), MESSAGE_HEADER):
        for place in _places(data, table, DICTIONARY_ID):
            (number,) = struct.unpack_from("<q", data, place)
        for place in _places(data, table, DICTIONARY_IS_DELTA):
            (is_delta,) = struct.unpack_from("<?", data, place)
    return number, is_delta


def _root(data: pa.Buffer | bytes) -> int:
    return int(struct.unpack_from("<I", data, 0)[0])


def _places(data: pa.Buffer | bytes, table: int, number: int) -> Iterator[int]:
    """Yield the place of field `number` of the table at `table`, if it has it."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if vtable >= 0 and 4 + 2 * number < struct.unpack_from("<H", data, vtable)[0]:
        (offset,) = struct.unpack_from("<H", data, vtable + 4 + 2 * number)
        if offset:
            yield table + offset


def _tables(data: pa.Buffer | bytes, table: int, number: int) -> Iterator[int]:
    """Yield the place of the table, or of the vector, that is field `number` of the table at `table`, if it has it."""
    for place in _places(data, table, number):
        yield place + struct.unpack_from("<I", data, place)[0]


def _vectors(data: pa.Buffer | bytes, table: int, number: int) -> Iterator[tuple[int, int]]:
    """Yield the place of the first item, and the number of items, of the vector that is field `number`."""
    for place in _tables(data, table, number):
        yield place + 4, struct.unpack_from("<I", data, place)[0]
