import errno
import os
from pathlib import Path

import pytest

from fastvec.errors import DiskFullError
from fastvec.shards.folder import LocalFolder


@pytest.fixture
def folder(tmp_path: Path) -> LocalFolder:
    return LocalFolder(tmp_path / "deep" / "vecs")


def test_a_folder_that_does_not_exist_is_empty_and_made_when_a_file_is_created(folder: LocalFolder) -> None:
    assert folder.names() == folder.names("inside") == {}
    with pytest.raises(FileNotFoundError):
        folder.read("a.json")
    assert folder.create("inside/a.json", b"content")
    assert folder.names() == {}
    assert folder.names("inside") == {"a.json": 7}
    assert folder.read("inside/a.json") == b"content"


def test_create_never_replaces_a_file(folder: LocalFolder) -> None:
    assert folder.create("a.json", b"first")
    assert not folder.create("a.json", b"second")
    assert folder.read("a.json") == b"first"
    assert list(folder.work.iterdir()) == []


def test_another_process_may_delete_the_work_folder(folder: LocalFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has published the same file, and with it finished the job."""
    link = os.link

    def late(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"theirs")
        Path(source).unlink()
        link(source, target)

    folder.create("other", b"")
    monkeypatch.setattr(os, "link", late)
    assert not folder.create("a.json", b"mine")
    assert folder.read("a.json") == b"theirs"


def test_publish_replaces_and_remove_forgets(folder: LocalFolder) -> None:
    folder.create("part-00000.arrow", b"older")
    draft = folder.work / "part-00000.arrow"
    draft.write_bytes(b"whole")
    folder.publish(draft, "part-00000.arrow")
    with folder.fetched("part-00000.arrow") as path:
        assert path.read_bytes() == b"whole"
    assert not draft.exists()
    for _ in range(2):
        folder.remove("part-00000.arrow")
    assert folder.names() == {}


def test_a_full_disk_is_one_line_and_leaves_no_file(folder: LocalFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder.create("other", b"")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(DiskFullError, match=r"no space left for .*a\.json: make room and run"):
            folder.create("a.json", b"content")
    assert folder.names() == {"other": 0}
    assert folder.create("a.json", b"content")
