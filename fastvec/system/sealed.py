"""JSON objects on a line of their own that end with the CRC32 of the line."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

_SEAL = b',"line_crc32":"'


def sealed(record: Mapping[str, Any]) -> bytes:
    """Return the line, with its end."""
    body = json.dumps(record, separators=(",", ":")).encode()[:-1]
    return b'%b%b%08x"}\n' % (body, _SEAL, zlib.crc32(body))


def unsealed(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line without its end, or None if its CRC32 does not match."""
    body, seal, crc32 = line.rpartition(_SEAL)
    if not seal or crc32 != b'%08x"}' % zlib.crc32(body):
        return None
    record: dict[str, Any] = json.loads(body + b"}")
    return record


def read_sealed(content: bytes) -> dict[str, Any]:
    """Return the record of a file that is one line; also of one without a CRC32, as earlier versions wrote it.

    Raises ValueError if its CRC32 does not match. If the name of the CRC32 is damaged, it is a field of the record.
    """
    if _SEAL not in content:
        earlier: dict[str, Any] = json.loads(content)
        return earlier
    record = unsealed(content[:-1]) if content.endswith(b"\n") else None
    if record is None:
        raise ValueError("the line does not match its CRC32")
    return record
