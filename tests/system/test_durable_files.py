import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fastvec.errors import DiskFullError, OutputError, UsageError
from fastvec.system.durable_files import sync_tree, translated_library_errors


def test_a_tree_is_synced_with_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = set()
    monkeypatch.setattr(os, "fsync", lambda fd: synced.add(os.fstat(fd).st_ino))
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_text("text")
    sync_tree(tmp_path)
    assert synced == {path.stat().st_ino for path in (tmp_path, *tmp_path.rglob("*"))}


class FullDisk(io.BytesIO):
    """A file that takes a few bytes, as the last block of a disk does."""

    def write(self, data: Any) -> int:
        if self.tell() > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_errors_that_libraries_make_of_a_failed_write_are_one_line(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(10_000)}
    with (
        pytest.raises(DiskFullError, match=r"^no space left for out: make room and run"),
        translated_library_errors(Path("out")),
    ):
        torch.save(tensors, FullDisk())
    with pytest.raises(OutputError, match=r"^out: No such file or directory$"), translated_library_errors(Path("out")):
        save_file(tensors, tmp_path / "nowhere" / "file")


@pytest.mark.parametrize("error", [UsageError("wrong"), ValueError("a bug")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), translated_library_errors(Path("out")):
        raise error
