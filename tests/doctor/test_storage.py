"""Folders that are full, read-only, without locks or not readable."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from fastvec.doctor import storage
from fastvec.errors import UsageError

GB = 10**9


@pytest.fixture(autouse=True)
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 GB are free, and all folders are in `tmp_path`."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100 * GB))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("FASTVEC_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def fail(monkeypatch: pytest.MonkeyPatch, function: str, code: int) -> None:
    def failing(*_: Any) -> Any:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(function, failing)


def test_a_sound_folder_is_written_and_left_as_it_was(tmp_path: Path) -> None:
    sound = "100.0 GB free; written, synced and locked"
    assert storage.check_temporary() == ("ok", f"{tmp_path}, {sound}")
    assert storage.check_output(tmp_path / "not/yet/there.arrow") == ("ok", f"{tmp_path}, {sound}")
    assert storage.check_spool() == ("ok", f"{tmp_path / 'spool'}, {sound}")
    assert storage.check_hub_cache() == ("ok", f"{tmp_path / 'hub'}, {sound}")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, "os.write", errno.ENOSPC)
    full = f"{tmp_path}: no space left: make room, or"
    assert storage.check_output(tmp_path) == ("FAILED", f"{full} give another folder with -o")
    assert storage.check_temporary() == ("FAILED", f"{full} set TMPDIR to a folder that can be written")
    assert storage.check_spool()[0] == storage.check_hub_cache()[0] == "note"
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, "os.open", errno.EROFS)
    read_only = f"{tmp_path}: Read-only file system:"
    assert storage.check_output(tmp_path) == ("FAILED", f"{read_only} give another folder with -o")
    where = "to a folder that can be written"
    assert storage.check_spool() == (
        "note",
        f"{read_only} set FASTVEC_SPOOL {where}, for inputs and outputs in object stores",
    )
    assert storage.check_hub_cache() == ("note", f"{read_only} set HF_HUB_CACHE {where}, to download models")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, "fcntl.flock", code)
    assert storage.check_output(tmp_path) == (
        "note",
        "this file system has no locks (flock): never start two runs with one output; "
        f"{tmp_path}, 100.0 GB free; written and synced",
    )


def test_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 * GB))
    result, detail = storage.check_output(tmp_path)
    assert (result, detail.partition(";")[0]) == (
        "note",
        "a million vectors of 1,024 dimensions in float32 take 4.1 GB: make room, or give another folder with -o",
    )
    assert storage.check_hub_cache()[0] == "note"


def test_a_cache_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, "os.scandir", errno.EACCES)
    assert storage.check_hub_cache() == (
        "FAILED",
        f"{tmp_path / 'hub'}: Permission denied: models of the hub cannot be used: give this user access, or set "
        "HF_HUB_CACHE to another folder",
    )


def test_no_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", missing)
    assert storage.check_temporary() == (
        "FAILED",
        "no folder for temporary files can be written: set TMPDIR to a folder that can be written",
    )


def test_a_folder_in_which_nothing_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, "os.open", errno.ENOENT)  # as in /proc
    detail = f"{tmp_path}: no file can be made there: give another folder with -o"
    assert storage.check_output(tmp_path) == ("FAILED", detail)


def test_a_store_is_not_asked() -> None:
    assert storage.check_output("s3://bucket/vecs.arrow")[0] == "ok"
    with pytest.raises(UsageError, match="the s3:// address contains a user or a password"):
        storage.check_output("s3://KEY:SECRET@bucket/vecs.arrow")
