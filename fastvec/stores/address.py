"""Addresses of files in object stores, which never contain credentials."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastvec.errors import UsageError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PARAMETER = re.compile(r"[?&][\w.-]+=")  # `?` alone is a character of a pattern
_AZURE = ("abfs", "abfss")  # whose addresses are container@account.dfs.core.windows.net/path
CREDENTIALS = "give credentials by environment variables or the store's own configuration"


@dataclass(frozen=True, slots=True)
class Address:
    """`scheme://path`; the path of a folder has no `/` at its end."""

    scheme: str
    path: str

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Parse an address. Raises UsageError, which does not repeat them, for credentials and other parameters."""
        match = _SCHEME.match(url)
        if match is None or "::" in url:  # fsspec's way to put one store's files through another
            raise UsageError("an address is not of the form that is known: expected one such as s3://bucket/path")
        scheme, path = match[1].lower(), url[match.end() :]
        if scheme in ("file", "local"):
            raise UsageError(f"the address of a local file was given ({scheme}://): give its path")
        user, at, _ = path.partition("/")[0].rpartition("@")
        if at and (":" in user or not (scheme in _AZURE or scheme in ("sftp", "ssh"))):
            raise UsageError(f"the {scheme}:// address contains a user or a password: {CREDENTIALS}")
        if _PARAMETER.search(path):
            raise UsageError(f"the {scheme}:// address contains parameters after a question mark: {CREDENTIALS}")
        return cls(scheme, path.rstrip("/"))

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix

    @property
    def sort_key(self) -> tuple[str, ...]:
        return tuple(self.path.split("/"))

    def __truediv__(self, relative: str) -> "Address":
        return Address(self.scheme, f"{self.path}/{relative}" if self.path else relative)

    def with_name(self, name: str) -> "Address":
        return Address(self.scheme, f"{self.path.rpartition('/')[0]}/{name}")

    def is_inside(self, folder: "Address") -> bool:
        return self.scheme == folder.scheme and f"{self.path}/".startswith(f"{folder.path}/".lstrip("/"))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"


def require_local(location: str | Path) -> Path:
    """Return `location` as a path; raises UsageError if it is an address."""
    if is_remote(location):
        raise UsageError(
            f"{location} is an address, and this command reads and writes local files: copy the file first"
        )
    return Path(location)


def is_remote(location: object) -> bool:
    """Return whether `location` is an address with a scheme, and not a local path."""
    return isinstance(location, str) and _SCHEME.match(location) is not None
