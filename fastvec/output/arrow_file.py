"""An Arrow IPC file by its parts: a head, one encapsulated message a record batch, a footer.

pyarrow cannot append to a file, and a file whose writer died has no footer. But a file is its parts laid end to end:
`head(schema)`, `encode(batch)` for every batch, `footer(...)`. The footer lists where each batch lies; it is made by
*replay*: the batches, mapped and never copied, go through pyarrow's own file writer into a sink that keeps only what
comes after the last of them. That costs some 20 µs a batch, and no reading of their bodies.

The footer's metadata hold a CRC32 for each batch, over all bytes since the batch before it (the first: since byte 0,
so with the head), because Arrow itself has no checksums: a flipped bit in a vector opens and validates.
"""

import json
import mmap
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from fastvec.errors import OutputError

FORMAT = "1"
MAGIC = b"ARROW1\0\0"
_OPTIONS = ipc.IpcWriteOptions()  # said outright, because pyarrow's default reads two environment variables
_READ_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One record batch in the file: `crc32` is over the bytes from the previous block's end to `end_offset`."""

    rows: int
    end_offset: int
    crc32: int


def require_plain(schema: pa.Schema) -> None:
    """Raise OutputError for a column whose bytes would depend on more than its values.

    Dictionaries lie outside the record batches; views and run-end encoded columns carry along whatever their slice
    was cut from. Such a column must be decoded first.
    """
    for field in schema:
        if not _is_plain(field.type):
            raise OutputError(f"column {field.name} is {field.type}, which an output cannot hold: cast it or drop it")


def _is_plain(type_: pa.DataType) -> bool:
    if isinstance(type_, pa.BaseExtensionType):
        return _is_plain(type_.storage_type)
    tests = (pa.types.is_dictionary, pa.types.is_string_view, pa.types.is_binary_view, pa.types.is_run_end_encoded)
    if any(test(type_) for test in tests):
        return False
    return all(_is_plain(type_.field(i).type) for i in range(type_.num_fields))


def head(schema: pa.Schema) -> bytes:
    """The bytes of a file before its first batch."""
    message: bytes = schema.serialize().to_pybytes()
    return MAGIC + message


def read_schema(path: Path) -> pa.Schema:
    """The schema at the head of a file, finished or not."""
    with pa.memory_map(str(path)) as source:
        source.seek(len(MAGIC))  # from here on the file is also a valid stream
        return ipc.open_stream(source).schema


def encode(batch: pa.RecordBatch) -> pa.Buffer:
    """The bytes of `batch` in a file: a function of its values alone.

    Without the copy by `take` they are not: a slice drags along unused bytes, and under a null lies whatever the
    Parquet reader's own batches left there. 70 MB of vectors take 7 ms to copy and 20 ms to serialise.
    """
    return batch.take(pa.array(np.arange(batch.num_rows))).serialize()


def footer_metadata(schema: pa.Schema, counts: Mapping[str, int], blocks: Sequence[Block]) -> dict[str, str]:
    """What the footer promises; its last entry covers the others and the schema."""
    metadata = {
        "fastvec.rows": str(sum(block.rows for block in blocks)),
        "fastvec.counts": json.dumps(dict(counts), sort_keys=True),
        "fastvec.batches": json.dumps([asdict(block) for block in blocks]),
    }
    checksum = zlib.crc32(head(schema) + json.dumps(metadata).encode())
    return metadata | {"fastvec.checksum": f"{checksum:08x}"}


class _Tail:
    """A sink that keeps what is written from `start` on, and counts the rest."""

    closed = False

    def __init__(self, start: int) -> None:
        self.start = start
        self.position = 0
        self.kept = bytearray()

    def write(self, piece: bytes) -> int:
        if self.position >= self.start:  # a piece never straddles: a batch ends at `start`
            self.kept += piece
        self.position += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self.position

    def flush(self) -> None:
        pass


def footer(path: Path, schema: pa.Schema, blocks: Sequence[Block], metadata: Mapping[str, str]) -> bytes:
    """All bytes after the last batch of the file at `path`, whose head and batches lie there already.

    Raises OutputError where the batches in the file do not end where `blocks` says.
    """
    begin = len(head(schema))
    sink = _Tail(blocks[-1].end_offset if blocks else begin)
    writer = ipc.new_file(sink, schema, options=_OPTIONS, metadata=dict(metadata))
    with path.open("rb") as file:
        for block in blocks:
            try:
                writer.write_batch(_mapped(file.fileno(), begin, block, schema))
            except ValueError:  # from mmap and from Arrow
                raise OutputError(
                    f"{path}: bytes {begin} to {block.end_offset} hold no batch: the file is damaged"
                ) from None
            if sink.position != block.end_offset:
                raise OutputError(
                    f"{path}: a batch ends at byte {sink.position}, expected {block.end_offset}: the file is damaged"
                )
            begin = block.end_offset
    writer.close()
    return bytes(sink.kept)


def _mapped(file: int, begin: int, block: Block, schema: pa.Schema) -> pa.RecordBatch:
    """The batch from byte `begin` on, mapped alone: mapped whole, a file stays in the resident size as it is walked."""
    offset = begin - begin % mmap.ALLOCATIONGRANULARITY
    mapping = mmap.mmap(file, block.end_offset - offset, offset=offset, access=mmap.ACCESS_READ)
    return ipc.read_record_batch(ipc.read_message(pa.py_buffer(mapping).slice(begin - offset)), schema)


def first_damaged(path: Path, blocks: Sequence[Block]) -> int | None:
    """Index of the first block whose bytes in the file at `path` are missing or do not give its CRC32; None: all do.

    Reads at 2 GB/s where the disk does. Not through a memory map, where a bad sector would be a signal, not an error.
    """
    start = 0
    with path.open("rb", buffering=0) as file:
        for index, block in enumerate(blocks):
            left, crc32 = block.end_offset - start, 0
            while left > 0 and (piece := file.read(min(left, _READ_BYTES))):
                left, crc32 = left - len(piece), zlib.crc32(piece, crc32)
            if left != 0 or crc32 != block.crc32:
                return index
            start = block.end_offset
    return None
