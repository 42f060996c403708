"""Local folders for files of a store: what is not uploaded yet, and copies that are read.

They are in `~/.cache/fastvec/spool`, or where the environment variable FASTVEC_SPOOL says. The folder of an output is
named by its address, so that the same command finds unfinished work again.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

from fastvec.stores.address import Address
from fastvec.stores.store import download
from fastvec.system.durable_files import translated_os_errors

VARIABLE = "FASTVEC_SPOOL"


def spool_folder(address: Address) -> Path:
    """Return the folder for the unfinished files of an output, which may not exist yet."""
    return spool_root() / blake2b(str(address).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


@contextmanager
def fetched(address: Address) -> Iterator[Path]:
    """Yield the path of a copy of a remote file, for the time of the block.

    Raises FileNotFoundError, OutputError or DiskFullError.
    """
    root = spool_root()
    with translated_os_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="copy-", dir=root)
    with folder as inside:
        path = Path(inside, address.name)
        download(address, path)
        yield path


def spool_root() -> Path:
    """Return the folder of all these folders, which may not exist yet."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(cache or Path.home() / ".cache") / "fastvec" / "spool"
