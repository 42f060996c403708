import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastvec.errors import DiskFullError, OutputError
from fastvec.shards.folder import LocalFolder, is_folder


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


@pytest.mark.parametrize("call", ["mkdir", "open", "link", "unlink"])
@pytest.mark.parametrize("is_theirs", [False, True])
def test_the_work_folder_may_be_deleted_at_any_time(
    folder: LocalFolder, monkeypatch: pytest.MonkeyPatch, call: str, is_theirs: bool
) -> None:
    """The process that does so may have created the same file before, or not."""
    system_call, calls = getattr(os, call), list[object]()

    def late(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(folder.work) in str(path) and not calls:
            calls.append(path)
            shutil.rmtree(folder.work, ignore_errors=True)
            if is_theirs and call != "unlink":
                (folder.path / "a.json").write_bytes(b"theirs")
        return system_call(path, *arguments, **options)

    folder.create("other", b"")
    if call == "mkdir":
        shutil.rmtree(folder.work)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, late)
        created = folder.create("a.json", b"mine")
    assert calls
    is_first = call == "unlink" or not is_theirs
    assert created == is_first
    assert folder.read("a.json") == (b"mine" if is_first else b"theirs")


def test_a_folder_that_cannot_be_written_is_one_line(folder: LocalFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.create("other", b"")
    shutil.rmtree(folder.work)
    folder.work.symlink_to(folder.path / "nowhere")
    with pytest.raises(OutputError, match=r"_work/a\.json\.\w+\.tmp: No such file or directory"):
        folder.create("a.json", b"content")


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL])
def test_a_file_system_without_hard_links(folder: LocalFolder, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    assert folder.create("a.json", b"first")
    assert not folder.create("a.json", b"second")
    assert folder.read("a.json") == b"first"
    assert list(folder.work.iterdir()) == []


def test_a_file_that_disappears_while_the_folder_is_read_is_left_out(
    folder: LocalFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        folder.create(name, b"content")
    scan = os.scandir

    class Entries:
        def __init__(self, path: Path) -> None:
            self._entries = sorted(scan(path), key=lambda entry: entry.name)
            (path / "b").unlink()

        def __enter__(self) -> "list[os.DirEntry[str]]":
            return self._entries

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Entries)
    assert folder.names() == {"a": 7, "c": 7}


@pytest.mark.parametrize(
    "use",
    [
        LocalFolder.names,
        lambda folder: folder.read("a.json"),
        lambda folder: folder.remove("a.json"),
        lambda folder: folder.create("a.json", b""),
    ],
)
def test_an_error_of_the_file_system_is_one_line(tmp_path: Path, use: Callable[[LocalFolder], object]) -> None:
    (tmp_path / "plain").write_text("a file")
    with pytest.raises(OutputError, match=r"plain.*: Not a directory$"):
        use(LocalFolder(tmp_path / "plain"))


def test_a_path_that_cannot_be_looked_up_is_one_line(tmp_path: Path) -> None:
    assert not is_folder(tmp_path / "missing")
    with pytest.raises(OutputError, match="File name too long"):
        is_folder(tmp_path / ("x" * 300))


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
