"""The manifest of a finished output in shards, written last: a file that it does not name is not part of the output."""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastvec.errors import OutputError
from fastvec.fingerprint import Json
from fastvec.shards.folder import Folder
from fastvec.shards.receipts import Receipts, part_name

MANIFEST, ERRORS = "_manifest.json", "_errors.jsonl"
_FORMAT = 1
_SEAL = b',\n"crc32":"'


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The whole of an output: its job, sums over its shards, its files in the order of rows.

    `errors_crc32` is the CRC32 of the file of row errors; None if there are none.
    """

    fingerprint: Mapping[str, Json]
    counts: Mapping[str, int]
    errors_crc32: str | None
    shards: Sequence[Shard]

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)


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
    body = b"".join(_text(head, ranges, receipts))
    folder.create(MANIFEST, b'%b%b%08x"}\n' % (body, _SEAL, zlib.crc32(body)))


def _text(head: Mapping[str, Json], ranges: Sequence[range], receipts: Receipts) -> Iterator[bytes]:
    """Yield the manifest as JSON with a line for each shard, without its end."""
    yield json.dumps(head, sort_keys=True).encode()[:-1] + b',\n"shards":['
    shards = zip(ranges, receipts.rows.tolist(), receipts.bytes.tolist(), receipts.checksums.tolist(), strict=True)
    for number, (rows, written, size, checksum) in enumerate(shards):
        yield (
            f'{"," if number else ""}\n{{"file":"{part_name(number, len(ranges))}","first_row":{rows.start},'
            f'"input_rows":{len(rows)},"rows":{written},"bytes":{size},"checksum":"{checksum:08x}"}}'
        ).encode()
    yield b"\n]"


def read_manifest(folder: Folder) -> Manifest | None:
    """Return the manifest of a finished output; None if there is none. Raises OutputError if it is damaged."""
    try:
        content = folder.read(MANIFEST)
    except FileNotFoundError:
        return None
    body, seal, crc32 = content.rpartition(_SEAL)
    if not seal or crc32 != b'%08x"}\n' % zlib.crc32(body):
        raise OutputError(f"{folder.location}/{MANIFEST} is damaged: it does not match its CRC32")
    fields: dict[str, Any] = json.loads(body + b"}")
    if fields["fastvec_manifest"] != _FORMAT:
        raise OutputError(f"{folder.location}/{MANIFEST} is from another version of fastvec: use that version")
    return Manifest(
        fingerprint=fields["fingerprint"],
        counts=fields["counts"],
        errors_crc32=fields["errors_crc32"],
        shards=[Shard(**shard) for shard in fields["shards"]],
    )


def read_errors(folder: Folder, manifest: Manifest) -> bytes:
    """Return the lines of row errors. Raises OutputError if they are missing or damaged."""
    if manifest.errors_crc32 is None:
        return b""
    try:
        content = folder.read(ERRORS)
    except FileNotFoundError:
        raise OutputError(f"{folder.location}/{ERRORS} is missing") from None
    if f"{zlib.crc32(content):08x}" != manifest.errors_crc32:
        raise OutputError(f"{folder.location}/{ERRORS} does not match its CRC32")
    return content
