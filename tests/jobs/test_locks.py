"""Two processes that would write the same shard: the second waits for one that ends, and is refused otherwise."""

import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastvec import Encoder, embed
from fastvec.errors import RefusedError
from fastvec.jobs import worker
from fastvec.shards.folder import LocalFolder
from fastvec.shards.verify import verify_folder
from fastvec.system import durable_files
from fastvec.system.durable_files import locked
from tests.helpers.kills import Killed, kill_after
from tests.jobs.test_sharded import contents

pytestmark = pytest.mark.usefixtures("small_chunks", "small_shards")


def test_a_shard_that_another_process_writes_is_refused(
    articles: Path, encoder: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LOCK_SECONDS", 0.0)
    with pytest.raises(Killed):
        embed([articles], f"{folder}/", encoder=encoder, column="text", progress=kill_after(1))
    (work,) = (folder / "_work").iterdir()
    with locked(work / "part-00000.arrow.lock"), pytest.raises(RefusedError, match="is locked by a running process"):
        embed([articles], f"{folder}/", encoder=encoder, column="text")
    assert embed([articles], f"{folder}/", encoder=encoder, column="text").rows == 300


def test_a_process_that_ends_is_waited_for(articles: Path, encoder: Encoder, folder: Path) -> None:
    """As the processes of a run that was killed end, some time after it."""
    with pytest.raises(Killed):
        embed([articles], f"{folder}/", encoder=encoder, column="text", progress=kill_after(1))
    (work,) = (folder / "_work").iterdir()
    with ExitStack() as other:
        other.enter_context(locked(work / "part-00000.arrow.lock"))
        end = threading.Timer(0.2, other.close)
        end.start()
        assert embed([articles], f"{folder}/", encoder=encoder, column="text").rows == 300
        end.join()


def test_a_run_that_finishes_the_job_meanwhile(
    articles: Path, encoder: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It deletes the folder of the lock that this one waits for."""
    with pytest.raises(Killed):
        embed([articles], f"{folder}/", encoder=encoder, column="text", progress=kill_after(1))
    (work,) = (folder / "_work").iterdir()
    other = ExitStack()
    other.enter_context(locked(work / "part-00000.arrow.lock"))

    def the_other_finishes(_: float) -> None:
        other.close()
        embed([articles], f"{folder}/", encoder=encoder, column="text")

    monkeypatch.setattr(durable_files, "time", SimpleNamespace(monotonic=time.monotonic, sleep=the_other_finishes))
    assert embed([articles], f"{folder}/", encoder=encoder, column="text").rows == 300
    assert verify_folder(LocalFolder(folder)).return_code == 0
    assert not (folder / "_work").exists()


def test_an_overwrite_is_refused_while_another_process_writes(articles: Path, encoder: Encoder, folder: Path) -> None:
    with pytest.raises(Killed):
        embed([articles], f"{folder}/", encoder=encoder, column="text", progress=kill_after(4))
    before = contents(folder)
    (work,) = (folder / "_work").iterdir()
    with locked(work / "part-00001.arrow.lock"), pytest.raises(RefusedError, match="is locked by a running process"):
        embed([articles], f"{folder}/", encoder=encoder, column="title", overwrite=True)
    assert contents(folder).keys() == before.keys() | {f"_work/{work.name}/part-00001.arrow.lock"}
    assert embed([articles], f"{folder}/", encoder=encoder, column="title", overwrite=True).rows == 300
