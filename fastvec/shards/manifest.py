"""The manifest of a finished output in shards, written last: a file that it does not name is not part of the output."""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import pyarrow as pa
from pyarrow.json import ParseOptions, read_json

from fastvec.errors import OutputError
from fastvec.fingerprint import Json
from fastvec.shards.folder import Folder
from fastvec.shards.receipts import Receipts, part_name

MANIFEST, ERRORS = "_manifest.json", "_errors.jsonl"
_FORMAT = 1
_SEAL = b',\n"crc32":"'
_LIST, _LIST_END = b',\n"shards":[', b"\n]"
_LINES = 4096  # written or read at a time


_COLUMNS = pa.schema(
    [
        ("file", pa.string()),
        ("first_row", pa.int64()),
        ("input_rows", pa.int64()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("checksum", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One file of an output, with the range of the inputs' rows that it has."""

    file: str
    first_row: int
    input_rows: int
    rows: int
    bytes: int
    checksum: str

    @property
    def rows_of_inputs(self) -> range:
        return range(self.first_row, self.first_row + self.input_rows)


class Shards(Sequence[Shard]):
    """The files of an output, kept as columns: a million of them take 60 MB, and as objects ten times that."""

    def __init__(self, lines: bytes) -> None:
        """Parse a manifest's list of shards, a line for each and a comma between two."""
        separate = pa.BufferReader(lines.replace(b"},\n", b"}\n"))
        self._table = read_json(separate, parse_options=ParseOptions(explicit_schema=_COLUMNS))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, number: int) -> Shard: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Shard]: ...
    def __getitem__(self, number: int | slice) -> Shard | Sequence[Shard]:
        if isinstance(number, slice):
            return [Shard(**fields) for fields in self._table[number].to_pylist()]
        return Shard(**{name: self._table[name][number].as_py() for name in _COLUMNS.names})

    def __iter__(self) -> Iterator[Shard]:
        for batch in self._table.to_batches(max_chunksize=_LINES):
            yield from (Shard(**fields) for fields in batch.to_pylist())


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The whole of an output: its job, sums over its shards, its files in the order of rows.

    `errors_crc32` is the CRC32 of the file of row errors; None if there are none.
    """

    fingerprint: Mapping[str, Json]
    rows: int
    counts: Mapping[str, int]
    errors_crc32: str | None
    shards: Sequence[Shard]


class LostErrorsError(OutputError):
    """The file of row errors is missing, or is not the one that the manifest lists."""


def write_manifest(
    folder: Folder, fingerprint: Mapping[str, Json], ranges: Sequence[range], receipts: Receipts
) -> None:
    """Publish the file of row errors, and the manifest of shards with these `ranges`, all of which have a receipt.

    Of several processes that do so, one writes each file; what they would write is the same.
    """
    errors = b"".join(f"{line}\n".encode() for line in receipts.error_lines())
    if errors:
        folder.create(ERRORS, errors)
    head: dict[str, Json] = {
        "fastvec_manifest": _FORMAT,
        "rows": int(receipts.rows.sum()),
        "counts": dict(receipts.counts),
        "errors_crc32": f"{zlib.crc32(errors):08x}" if errors else None,
        "fingerprint": fingerprint,
    }
    pieces, crc32 = [], 0
    for piece in _text(head, ranges, receipts):
        crc32 = zlib.crc32(piece, crc32)
        pieces.append(piece)
    folder.create(MANIFEST, b"".join([*pieces, _SEAL, b'%08x"}\n' % crc32]))


def _text(head: Mapping[str, Json], ranges: Sequence[range], receipts: Receipts) -> Iterator[bytes]:
    """Yield the manifest as JSON with a line for each shard, without its end."""
    yield json.dumps(head, sort_keys=True).encode()[:-1] + _LIST
    for begin in range(0, len(ranges), _LINES):
        some = slice(begin, begin + _LINES)
        columns = (receipts.rows[some].tolist(), receipts.bytes[some].tolist(), receipts.checksums[some].tolist())
        lines = [
            f'\n{{"file":"{part_name(begin + number, len(ranges))}","first_row":{rows.start},'
            f'"input_rows":{len(rows)},"rows":{written},"bytes":{size},"checksum":"{checksum:08x}"}}'
            for number, (rows, written, size, checksum) in enumerate(zip(ranges[some], *columns, strict=True))
        ]
        yield (("," if begin else "") + ",".join(lines)).encode()
    yield _LIST_END


def read_manifest(folder: Folder) -> Manifest | None:
    """Return the manifest of a finished output; None if there is none. Raises OutputError if it is damaged."""
    try:
        content = folder.read(MANIFEST)
    except FileNotFoundError:
        return None
    begin, end = content.find(_LIST), content.rfind(_SEAL)
    if min(begin, end) < 0 or content[end:] != b'%b%08x"}\n' % (_SEAL, zlib.crc32(memoryview(content)[:end])):
        raise OutputError(f"{folder.location}/{MANIFEST} is damaged: delete it, and run fastvec embed again")
    fields: dict[str, Any] = json.loads(content[:begin] + b"}")
    if fields["fastvec_manifest"] != _FORMAT:
        raise OutputError(f"{folder.location}/{MANIFEST} is from another version of fastvec: use that version")
    return Manifest(
        fingerprint=fields["fingerprint"],
        rows=fields["rows"],
        counts=fields["counts"],
        errors_crc32=fields["errors_crc32"],
        shards=Shards(content[begin + len(_LIST) : end - len(_LIST_END)]),
    )


def read_errors(folder: Folder, manifest: Manifest) -> bytes:
    """Return the lines of row errors. Raises LostErrorsError, and OutputError if they cannot be read."""
    if manifest.errors_crc32 is None:
        return b""
    try:
        content = folder.read(ERRORS)
    except FileNotFoundError:
        raise LostErrorsError(f"{folder.location}/{ERRORS} is missing") from None
    if f"{zlib.crc32(content):08x}" != manifest.errors_crc32:
        raise LostErrorsError(f"{folder.location}/{ERRORS} does not match its CRC32")
    return content
