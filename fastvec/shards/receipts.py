"""Receipts of finished shards: what a shard's file is known by before the manifest lists all of them.

A shard is published first and its receipt second, so that a file without a receipt is work that is not finished.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from fastvec.errors import OutputError
from fastvec.shards.folder import Folder
from fastvec.system.sealed import read_sealed, sealed

RECEIPTS = "_receipts"
_DIGITS = 5  # of a shard's number in names, at least
READERS, READ_AHEAD = 16, 64  # threads, which wait for an object store; and how many receipts each reads at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What a finished shard contains. `checksum` is that of its footer, which covers every byte of the file."""

    shard: int
    first_row: int  # of the inputs
    input_rows: int
    rows: int  # of the file; other than `input_rows` if its rows are passages
    bytes: int
    checksum: str
    counts: Mapping[str, int]
    errors: Sequence[str]  # lines of row errors
    verified: bool = False  # whether the file was read back from the disk before it was published

    def write(self, folder: Folder, name: str) -> "Receipt":
        """Publish the receipt; returns that of another process if it was first."""
        return self if folder.create(name, sealed(asdict(self))) else read_receipt(folder, name)


def part_name(shard: int, shards: int) -> str:
    """Return the name of a shard's file; in the order of names, the shards are in the order of their rows."""
    return f"part-{shard:0{max(_DIGITS, len(str(shards - 1)))}}.arrow"


def is_part(name: str) -> bool:
    """Return whether a file of a folder has the name of a shard."""
    return re.fullmatch(r"part-\d{5,}\.arrow", name) is not None


def receipt_name(job: str, shard: int) -> str:
    """Return the name of a shard's receipt; `job` is the id of the job's record."""
    return f"{RECEIPTS}/{job}/{shard}.json"


def read_receipt(folder: Folder, name: str) -> Receipt:
    """Read a receipt. Raises OutputError if it is damaged, FileNotFoundError if there is none."""
    try:
        receipt = Receipt(**read_sealed(folder.read(name)))
        if name.rpartition("/")[2] != f"{receipt.shard}.json":
            raise ValueError(f"it is that of shard {receipt.shard}")
        return receipt
    except (ValueError, TypeError) as error:
        raise OutputError(f"{folder.location}/{name} is damaged: delete it, and run the command again") from error


def finished_shards(folder: Folder, job: str) -> set[int]:
    """Return the numbers of the shards of a job that have a receipt."""
    names = (name.removesuffix(".json") for name in folder.names(f"{RECEIPTS}/{job}") if name.endswith(".json"))
    return {int(name) for name in names if name.isdecimal()}


class Receipts:
    """The receipts of a job's shards, a million of which take 40 MB. Error lines are left in the folder.

    Attributes:
        job: The id of the job's record; it may be set when the first receipts, of a job that begins, are added.
        counts: The sums of the shards' counts.
        verified: Whether all that were added were read back before they were published.
        has: Which shards have a receipt [n].
        rows, bytes, checksums: Of each shard [n].
    """

    def __init__(self, folder: Folder, job: str, shards: int) -> None:
        self.counts: Counter[str] = Counter()
        self.verified = True
        self.has = np.zeros(shards, dtype=np.bool_)
        self.rows, self.bytes = np.zeros((2, shards), dtype=np.int64)
        self.checksums: npt.NDArray[np.uint32] = np.zeros(shards, dtype=np.uint32)
        self.job = job
        self._folder = folder
        self._with_errors: set[int] = set()

    def add(self, receipt: Receipt) -> None:
        """Add a receipt; one that is already there is not counted again."""
        shard = receipt.shard
        if self.has[shard]:
            return
        self.has[shard] = True
        self.rows[shard], self.bytes[shard] = receipt.rows, receipt.bytes
        self.checksums[shard] = int(receipt.checksum, 16)
        self.counts.update(receipt.counts)
        self.verified = self.verified and receipt.verified
        if receipt.errors:
            self._with_errors.add(shard)

    def read(self, shards: Iterable[int]) -> None:
        """Add the receipts of `shards` from the folder, unless they are already there."""
        missing = [shard for shard in shards if not self.has[shard]]
        readers = min(READERS, len(missing))
        with ThreadPoolExecutor(READERS) as pool:
            for begin in range(0, len(missing), READERS * READ_AHEAD):
                some = missing[begin : begin + READERS * READ_AHEAD]
                for receipts in pool.map(self._read_some, (some[reader::readers] for reader in range(readers))):
                    for receipt in receipts:
                        self.add(receipt)

    def _read_some(self, shards: Sequence[int]) -> list[Receipt]:
        return [read_receipt(self._folder, receipt_name(self.job, shard)) for shard in shards]

    def without_file(self, sizes: Mapping[str, int]) -> list[int]:
        """Return the shards whose file is not among these names, or has another size than its receipt says."""
        shards = len(self.has)
        return [
            int(shard)
            for shard in np.flatnonzero(self.has)
            if sizes.get(part_name(int(shard), shards)) != self.bytes[shard]
        ]

    def error_lines(self) -> Iterator[str]:
        """Yield the lines of all row errors, in the order of rows."""
        for shard in sorted(self._with_errors):
            yield from read_receipt(self._folder, receipt_name(self.job, shard)).errors
