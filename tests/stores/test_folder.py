"""A folder of shards on a local disk and in a store: both keep what the protocol promises."""

from pathlib import Path

import pytest

from fastvec.shards.folder import Folder, open_folder
from fastvec.stores.address import Address


def test_a_local_folder_keeps_what_the_protocol_promises(tmp_path: Path) -> None:
    check_promises(open_folder(tmp_path / "vecs"))


def test_a_folder_in_a_store_keeps_what_the_protocol_promises(folder: Address) -> None:
    check_promises(open_folder(f"{folder}/vecs/"))


def check_promises(shards: Folder) -> None:
    assert shards.names() == shards.names("_receipts") == {}
    with pytest.raises(FileNotFoundError):
        shards.read("manifest.json")
    assert shards.create("_receipts/0.json", b"{}")
    assert not shards.create("_receipts/0.json", b"[]")
    assert shards.read("_receipts/0.json") == b"{}"
    shards.work.mkdir(parents=True, exist_ok=True)
    for content in (b"first", b"second!"):
        part = shards.work / "shard-0.arrow"
        part.write_bytes(content)
        shards.publish(part, "shard-0.arrow")
        assert not part.exists()
        with shards.fetched("shard-0.arrow") as path:
            assert path.read_bytes() == content
    assert shards.names() == {"shard-0.arrow": 7}
    assert shards.names("_receipts") == {"0.json": 2}
    shards.remove("shard-0.arrow")
    shards.remove("shard-0.arrow")
    assert shards.names() == {}


def test_the_same_address_has_the_same_work_folder(folder: Address, spool: Path) -> None:
    first, again = open_folder(f"{folder}/vecs"), open_folder(f"{folder}/vecs/")
    assert first.location == again.location == f"{folder}/vecs"
    assert first.work == again.work
    assert first.work.is_relative_to(spool)
    assert open_folder(f"{folder}/others").work != first.work
