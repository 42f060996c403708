"""A file of a store that is read: as a stream, or at random."""

import io
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from fastvec.errors import InputError
from fastvec.stores.address import Address
from fastvec.stores.errors import translated_store_errors
from fastvec.stores.store import connected, find

STREAM_BYTES = 8 << 20  # of one request of a stream, which holds the last one and the next


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a store, read as it was when it was looked up: a later version is an error."""

    address: Address
    size: int
    version: str

    @classmethod
    def found(cls, address: Address) -> "RemoteFile":
        """Look a file up. Raises InputError if there is none, or the store cannot be asked."""
        try:
            entry = find(address)
        except FileNotFoundError:
            raise InputError(f"{address}: no such file, folder or bucket") from None
        if entry.is_folder:
            raise InputError(f"{address}: a folder, not a file")
        return cls(address, entry.size, entry.version)

    @property
    def name(self) -> str:
        return self.address.name

    def __str__(self) -> str:
        return str(self.address)

    def require_unchanged(self) -> None:
        """Raise InputError if the file's size or version in the store is another one by now."""
        try:
            entry = find(self.address)
        except FileNotFoundError:
            raise InputError(f"{self}: was deleted while it was being read") from None
        if (entry.size, entry.version) != (self.size, self.version):
            raise InputError(f"{self}: changed while it was being read; run the command again")

    def open(self, *, stream: bool) -> BinaryIO:
        """Open the file: for reading from its start, in large requests and ahead, or at random, exactly what is asked.

        Where the store can (S3), each request is for the version that was opened, and fails for a later one.
        """
        caching: dict[str, Any] = {"cache_type": "none"}
        if stream:
            caching = {"cache_type": "background", "cache_options": {"maxblocks": 2}}
        with translated_store_errors(self.address, InputError):
            system, path = connected(self.address)
            opened = system.open(path, "rb", block_size=STREAM_BYTES, **caching)
        raw = _Raw(self, opened)
        return cast(BinaryIO, io.BufferedReader(raw, 1 << 20) if stream else raw)


class _Raw(io.RawIOBase):
    """Reads a file of fsspec; its errors become InputError, and so does an answer that is too short."""

    def __init__(self, file: RemoteFile, opened: Any) -> None:
        self._file, self._opened = file, opened

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._opened.seek(offset, whence))

    def tell(self) -> int:
        return int(self._opened.tell())

    def size(self) -> int:
        """Return the size; pyarrow asks for it."""
        return self._file.size

    def readinto(self, buffer: Any) -> int:
        begin, view = self.tell(), memoryview(buffer).cast("B")
        wanted = min(len(view), max(self._file.size - begin, 0))
        if wanted == 0:
            return 0
        try:
            with translated_store_errors(self._file.address, InputError):
                piece = self._opened.read(wanted)
        except FileNotFoundError:
            raise InputError(f"{self._file}: was deleted while it was being read") from None
        if len(piece) != wanted:
            raise InputError(
                f"{self._file}: the store sent {len(piece):,} bytes at {begin:,}, not {wanted:,}; run the command again"
            )
        view[:wanted] = piece
        return wanted

    def close(self) -> None:
        if not self.closed:
            self._opened.close()
        super().close()
