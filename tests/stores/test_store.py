"""Files of a store: each test runs on fsspec's memory, and on a real S3 server if one is installed."""

import os
from pathlib import Path

import pytest

from fastvec.errors import InputError, InterruptedRunError, OutputError
from fastvec.stores import store
from fastvec.stores.address import Address
from fastvec.stores.remote_file import RemoteFile
from fastvec.stores.spool import fetched, spool_folder


def test_files_are_created_once_and_listed_with_their_sizes(folder: Address) -> None:
    assert store.sizes_in(folder) == {}
    assert store.create(folder / "b", b"four")
    assert not store.create(folder / "b", b"another")
    assert store.create(folder / "a", b"")
    assert store.create(folder / "deep/c", b"12")
    assert store.read(folder / "b") == b"four"
    assert store.read(folder / "b", 1, 3) == b"ou"
    assert store.sizes_in(folder) == {"a": 0, "b": 4}
    assert store.sizes_in(folder / "deep") == {"c": 2}
    assert store.files_below(folder) == [folder / "a", folder / "b", folder / "deep/c"]
    store.remove(folder / "b")
    store.remove(folder / "b")
    assert store.sizes_in(folder) == {"a": 0}
    with pytest.raises(FileNotFoundError):
        store.read(folder / "b")


@pytest.mark.parametrize("is_late", [False, True])
def test_a_file_is_created_whole_where_a_store_has_no_such_call(
    spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """A local disk through fsspec: what was written when the process was killed is not under the file's name."""
    from fsspec.implementations.local import LocalFileSystem

    class Killed(BaseException):
        pass

    def killed(system: LocalFileSystem, path: str, content: bytes, **_: object) -> None:
        Path(path).write_bytes(content if is_late else content[:3])
        raise Killed

    folder = Address("file", str(tmp_path / "store"))
    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "pipe_file", killed)
        with pytest.raises(Killed):
            store.create(folder / "deep/a.json", b"content")
    assert len(list((tmp_path / "store/deep").iterdir())) == 1
    assert store.sizes_in(folder / "deep") == {}
    assert store.create(folder / "deep/a.json", b"content")
    assert not store.create(folder / "deep/a.json", b"another")
    assert store.read(folder / "deep/a.json") == b"content"


def test_a_store_that_renames_over_no_file(folder: Address, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def refuse(system: MemoryFileSystem, draft: str, path: str) -> None:
        if path.endswith("theirs"):
            system.store[path] = system.store[draft]
        raise OSError("Rename destination already exists")

    if folder.scheme != "memory":
        pytest.skip("S3 creates a file under its name")
    monkeypatch.setattr(MemoryFileSystem, "mv", refuse)
    assert not store.create(folder / "theirs", b"content")
    assert [path for path in MemoryFileSystem.store if "upload" in path] == []
    with pytest.raises(OutputError, match="the store's answer was an error"):
        store.create(folder / "mine", b"content")


def test_an_upload_replaces_a_file_unless_it_is_exclusive(folder: Address, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(os.urandom(1000))
    assert store.upload(local, folder / "x", exclusive=True)
    assert not store.upload(local, folder / "x", exclusive=True)
    local.write_bytes(b"shorter")
    assert store.upload(local, folder / "x")
    assert store.read(folder / "x") == b"shorter"
    assert store.sizes_in(folder) == {"x": 7}
    assert local.exists()


def test_a_copy_lives_as_long_as_its_block(folder: Address, spool: Path) -> None:
    store.create(folder / "x.arrow", b"content")
    with fetched(folder / "x.arrow") as path:
        assert (path.name, path.read_bytes()) == ("x.arrow", b"content")
        assert path.is_relative_to(spool)
    assert not path.exists()
    with pytest.raises(FileNotFoundError), fetched(folder / "missing"):
        pass
    assert list(spool.iterdir()) == []


def test_the_spool_folder_of_an_address_is_found_again(folder: Address, spool: Path) -> None:
    assert spool_folder(folder) == spool_folder(Address.parse(f"{folder}/"))
    assert spool_folder(folder) != spool_folder(folder / "x")
    assert spool_folder(folder).is_relative_to(spool)


@pytest.mark.parametrize("stream", [True, False])
def test_a_remote_file_is_read_from_any_place(folder: Address, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastvec.stores.remote_file.STREAM_BYTES", 1000)
    content = os.urandom(10_001)
    store.create(folder / "x", content)
    file = RemoteFile.found(folder / "x")
    assert (file.size, file.name, str(file)) == (10_001, "x", f"{folder}/x")
    with file.open(stream=stream) as opened:
        assert opened.read(10) == content[:10]
        opened.seek(5_000)
        assert opened.read(2_500) == content[5_000:7_500]
        opened.seek(-1, os.SEEK_END)
        assert opened.read(100) == content[-1:]
        assert opened.read(100) == b""
    file.require_unchanged()


@pytest.mark.parametrize("content", [b"another size", b"CONTENT"])
def test_a_file_that_changes_is_noticed(folder: Address, content: bytes) -> None:
    store.create(folder / "x", b"content")
    file = RemoteFile.found(folder / "x")
    store.remove(folder / "x")
    with pytest.raises(InputError, match="x: was deleted while it was being read"):
        file.require_unchanged()
    store.create(folder / "x", content)
    with pytest.raises(InputError, match="x: changed while it was being read"):
        file.require_unchanged()


@pytest.mark.parametrize(
    ("inside", "message"),
    [("missing", "missing: no such file, folder or bucket"), ("deep", "deep: a folder, not a file")],
)
def test_what_is_no_file_is_one_line(folder: Address, inside: str, message: str) -> None:
    store.create(folder / "deep/x", b"content")
    with pytest.raises(InputError, match=message):
        RemoteFile.found(folder / inside)


def test_a_stopped_upload_publishes_nothing(folder: Address, tmp_path: Path) -> None:
    if folder.scheme == "memory":
        pytest.skip("a store of fsspec's own has no parts")
    local = tmp_path / "large"
    local.write_bytes(os.urandom(120 << 20))  # three parts

    def stop() -> None:
        raise InterruptedRunError("stopped", 15)

    with pytest.raises(InterruptedRunError):
        store.upload(local, folder / "x", check=stop)
    assert store.sizes_in(folder) == {}
    assert store.upload(local, folder / "x", exclusive=True)
    assert store.sizes_in(folder) == {"x": local.stat().st_size}


def test_a_short_upload_is_deleted(folder: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "local").write_bytes(b"content")
    short = store.Entry(is_folder=False, size=3, version="")
    monkeypatch.setattr(store, "_entry", lambda info: short)
    with pytest.raises(OutputError, match="has 3 bytes after its upload, not 7"):
        store.upload(tmp_path / "local", folder / "x")
    assert store.sizes_in(folder) == {}
