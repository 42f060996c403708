from pathlib import Path

import pytest

from fastvec.errors import OutputError
from fastvec.shards import receipts as module
from fastvec.shards.folder import LocalFolder
from fastvec.shards.receipts import Receipt, Receipts, receipt_name

SHARDS = 30
JOB = "0123"


class Counting(LocalFolder):
    """A folder that lists the files that were read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads: list[str] = []

    def read(self, name: str) -> bytes:
        self.reads.append(name)
        return super().read(name)


def receipt(shard: int) -> Receipt:
    return Receipt(
        shard=shard,
        first_row=10 * shard,
        input_rows=10,
        rows=10 + shard,
        bytes=1000 + shard,
        checksum=f"{shard:08x}",
        counts={"tokens": shard},
        errors=[f"line {shard}"] if shard % 10 == 0 else [],
    )


@pytest.fixture
def folder(tmp_path: Path) -> Counting:
    folder = Counting(tmp_path)
    for shard in range(SHARDS):
        receipt(shard).write(folder, receipt_name(JOB, shard))
    return folder


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read at most 6 receipts in a round."""
    monkeypatch.setattr(module, "READERS", 3)
    monkeypatch.setattr(module, "READ_AHEAD", 2)


def test_every_receipt_is_read_once(folder: Counting) -> None:
    receipts = Receipts(folder, JOB, SHARDS)
    receipts.add(receipt(7))
    receipts.read(range(20))
    assert sorted(folder.reads) == sorted(receipt_name(JOB, shard) for shard in range(20) if shard != 7)
    receipts.read(range(SHARDS))
    assert len(folder.reads) == SHARDS - 1

    assert receipts.has.all()
    assert receipts.rows.tolist() == [10 + shard for shard in range(SHARDS)]
    assert receipts.bytes.tolist() == [1000 + shard for shard in range(SHARDS)]
    assert receipts.checksums.tolist() == list(range(SHARDS))
    assert receipts.counts == {"tokens": sum(range(SHARDS))}
    assert list(receipts.error_lines()) == ["line 0", "line 10", "line 20"]


def test_a_damaged_receipt_is_named(folder: Counting) -> None:
    (folder.path / receipt_name(JOB, 13)).write_text("{")
    with pytest.raises(OutputError, match=r"_receipts/0123/13.json is damaged: delete it, and run the command again"):
        Receipts(folder, JOB, SHARDS).read(range(SHARDS))
