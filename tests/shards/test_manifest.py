import json
from pathlib import Path

import numpy as np
import pytest

from fastvec.errors import OutputError
from fastvec.shards.folder import LocalFolder
from fastvec.shards.manifest import MANIFEST, Shard, read_manifest, write_manifest
from fastvec.shards.receipts import Receipts


@pytest.fixture
def folder(tmp_path: Path) -> LocalFolder:
    return LocalFolder(tmp_path / "vecs")


def write(folder: LocalFolder, shards: int) -> list[Shard]:
    """Write a manifest, whose shards have 10 rows of the inputs each; returns what it should list."""
    receipts = Receipts(folder, "0123", shards)
    receipts.rows[:], receipts.bytes[:] = 7, 1 << 40
    receipts.checksums[:] = np.arange(shards)
    receipts.counts.update(tokens=3)
    write_manifest(folder, {"rows": 10 * shards}, [range(10 * i, 10 * i + 10) for i in range(shards)], receipts)
    return [
        Shard(
            file=f"part-{number:05}.arrow",
            first_row=10 * number,
            input_rows=10,
            rows=7,
            bytes=1 << 40,
            checksum=f"{number:08x}",
        )
        for number in range(shards)
    ]


@pytest.mark.parametrize("shards", [1, 2, 9000])  # 4,096 lines are written at a time
def test_a_manifest_lists_all_shards(folder: LocalFolder, shards: int) -> None:
    expected = write(folder, shards)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert (manifest.rows, manifest.counts, manifest.errors_crc32) == (7 * shards, {"tokens": 3}, None)
    assert manifest.fingerprint == {"rows": 10 * shards}
    assert list(manifest.shards) == expected
    assert (len(manifest.shards), manifest.shards[0], manifest.shards[-1]) == (shards, expected[0], expected[-1])
    assert manifest.shards[:2] == expected[:2]
    with pytest.raises(IndexError):
        manifest.shards[shards]


def test_it_is_json(folder: LocalFolder) -> None:
    write(folder, 3)
    fields = json.loads(folder.read(MANIFEST))
    assert [shard["file"] for shard in fields["shards"]] == [f"part-0000{number}.arrow" for number in range(3)]


@pytest.mark.parametrize("at", [0.1, 0.5, 0.99])
def test_a_changed_byte_is_found(folder: LocalFolder, at: float) -> None:
    write(folder, 3)
    content = bytearray(folder.read(MANIFEST))
    content[int(len(content) * at)] ^= 1
    (folder.path / MANIFEST).write_bytes(content)
    with pytest.raises(OutputError, match=r"_manifest.json is damaged: delete it, and run fastvec embed again"):
        read_manifest(folder)
