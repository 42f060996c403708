"""What other runs, other processes and people leave in a folder never becomes a wrong output."""

import errno
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pytest

from fastvec import Encoder, embed
from fastvec.errors import DiskFullError, OutputError, RefusedError, RowErrorsError
from fastvec.jobs.worker import ShardWorker
from fastvec.output.reader import Output
from fastvec.shards.folder import LocalFolder
from fastvec.shards.verify import verify_folder
from fastvec.system.sealed import read_sealed, sealed
from tests.helpers.kills import Killed, kill_after
from tests.helpers.shards import parts_of
from tests.jobs.test_sharded import contents

pytestmark = pytest.mark.usefixtures("small_chunks", "small_shards")
slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("_receipts/*/1.json", b"{", r"/1.json is damaged: delete it, and run the command again"),
        ("_job.json", b"[]", r"_job.json is damaged: delete it if the folder has a _manifest.json, or else the folder"),
        ("_job.json", sealed({"fastvec_job": 99}), r"is from another version of fastvec"),
    ],
)
def test_damaged_files_of_an_unfinished_job(
    articles: Path, encoder: Encoder, folder: Path, name: str, content: bytes, message: str
) -> None:
    embed([articles], f"{folder}/", encoder=encoder, column="text", shard="1/2")
    next(folder.glob(name)).write_bytes(content)
    with pytest.raises(OutputError, match=message):
        embed([articles], f"{folder}/", encoder=encoder, column="text")


def test_max_errors_is_not_passed_by_running_again_or_in_a_job_array(
    encoder: Encoder, folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join('{"text": "good"}' if row % 50 else "{broken" for row in range(300)))
    for _ in range(3):
        with pytest.raises(RowErrorsError, match="6 texts have no vector and --max-errors 5 stops there"):
            embed([source], f"{folder}/", encoder=encoder, max_errors=5)
    assert not (folder / "_manifest.json").exists()
    array = folder.with_name("array")
    embed([source], f"{array}/", encoder=encoder, max_errors=5, shard="0/2")
    with pytest.raises(RowErrorsError, match="6 texts have no vector and --max-errors 5 stops there"):
        embed([source], f"{array}/", encoder=encoder, max_errors=5, shard="1/2")
    assert embed([source], f"{array}/", encoder=encoder, max_errors=6, shard="1/2").missing_shards == 0


@pytest.mark.parametrize("finished", [True, False])
def test_a_shard_whose_file_is_gone_is_embedded_again(
    articles: Path, encoder: Encoder, folder: Path, finished: bool, encoded: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    embed([articles], f"{folder}/", encoder=encoder, column="text")
    expected = contents(folder)
    (folder / "part-00001.arrow").unlink()
    (folder / "part-00003.arrow").write_bytes(b"cut")
    if not finished:
        (folder / "_manifest.json").unlink()
    encoded.clear()
    caplog.clear()
    report = embed([articles], f"{folder}/", encoder=encoder, column="text")
    assert contents(folder) == expected
    assert (report.rows, report.resumed_rows, sum(encoded)) == (300, 180, 120)
    assert [message.partition(" is missing")[0] for message in caplog.messages] == [
        f"{folder}/part-0000{shard}.arrow" for shard in (1, 3)
    ]


def flip_in_the_middle(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [slow(lambda data: data + b"x"), slow(lambda data: data[:-20]), slow(lambda _: b""), flip_in_the_middle]
)
def test_a_finished_shard_that_was_damaged_before_it_was_published_is_embedded_again(
    articles: Path,
    encoder: Encoder,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[bytes], bytes],
) -> None:
    embed([articles], f"{folder.parent}/undisturbed/", encoder=encoder, column="text")
    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "publish", fail_to_publish)
        with pytest.raises(OutputError, match="no"):
            embed([articles], f"{folder}/", encoder=encoder, column="text")
    (draft,) = folder.glob("_work/*/part-*.arrow")
    draft.write_bytes(damage(draft.read_bytes()))
    embed([articles], f"{folder}/", encoder=encoder, column="text")
    assert parts_of(folder) == parts_of(folder.parent / "undisturbed")


def test_a_finished_shard_that_cannot_be_read_now_is_kept(
    articles: Path, encoder: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_to_read(output: Output) -> None:
        raise OSError(errno.EIO, "Input/output error", str(output.path))

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "publish", fail_to_publish)
        with pytest.raises(OutputError, match="no"):
            embed([articles], f"{folder}/", encoder=encoder, column="text")
    (draft,) = folder.glob("_work/*/part-*.arrow")
    before = draft.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("fastvec.output.verify.check_bytes", fail_to_read)
        with pytest.raises(OutputError, match=f"^{draft}: Input/output error$"):
            embed([articles], f"{folder}/", encoder=encoder, column="text")
    assert draft.read_bytes() == before


@pytest.mark.parametrize(
    "damage", [Path.unlink, slow(lambda path: path.write_bytes(b"{}")), slow(lambda path: path.write_text(""))]
)
def test_a_shard_whose_journal_is_lost_is_embedded_again(
    articles: Path, encoder: Encoder, folder: Path, damage: Callable[[Path], object]
) -> None:
    embed([articles], f"{folder.parent}/undisturbed/", encoder=encoder, column="text")
    with pytest.raises(Killed):
        embed([articles], f"{folder}/", encoder=encoder, column="text", progress=kill_after(2))
    (journal,) = folder.glob("_work/*/part-*.journal")
    damage(journal)
    embed([articles], f"{folder}/", encoder=encoder, column="text")
    assert parts_of(folder) == parts_of(folder.parent / "undisturbed")


@pytest.fixture
def with_errors(tmp_path: Path) -> Path:
    """Rows of two shards, each of which has a row error."""
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join('{"text": "good"}' if row % 50 else "{broken" for row in range(100)))
    return source


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text('{"row": 7}\n')])
def test_row_errors_that_are_lost_or_damaged_are_written_again(
    encoder: Encoder, folder: Path, with_errors: Path, encoded: list[int], damage: Callable[[Path], object]
) -> None:
    embed([with_errors], f"{folder}/", encoder=encoder, shard_rows=60)
    expected = contents(folder)
    damage(folder / "_errors.jsonl")
    failed = [check for check in verify_folder(LocalFolder(folder)).checks if not check.passed]
    assert [check.name for check in failed] == ["row errors"]
    assert failed[0].detail.endswith("; run the same fastvec embed again to make it anew")
    encoded.clear()
    assert embed([with_errors], f"{folder}/", encoder=encoder).rows == 100
    assert (contents(folder), encoded) == (expected, [])


@pytest.mark.parametrize("is_damaged", [True, False])
def test_row_errors_are_not_deleted_if_they_cannot_be_made_again(
    encoder: Encoder, folder: Path, with_errors: Path, monkeypatch: pytest.MonkeyPatch, is_damaged: bool
) -> None:
    """Because the record is gone, or because the disk may return them the next time."""
    embed([with_errors], f"{folder}/", encoder=encoder, shard_rows=60)
    if is_damaged:
        (folder / "_job.json").unlink()
        (folder / "_errors.jsonl").write_text('{"row": 7}\n')
    else:
        read = LocalFolder.read

        def fail(self: LocalFolder, name: str) -> bytes:
            if name == "_errors.jsonl":
                raise OutputError("Input/output error")
            return read(self, name)

        monkeypatch.setattr(LocalFolder, "read", fail)
    before = contents(folder)
    with pytest.raises(OutputError, match="and so is _job.json" if is_damaged else "Input/output error"):
        embed([with_errors], f"{folder}/", encoder=encoder)
    assert contents(folder) == before


def test_a_shard_of_another_process_of_the_array_is_gone(articles: Path, encoder: Encoder, folder: Path) -> None:
    for index in range(2):
        embed([articles], f"{folder}/", encoder=encoder, column="text", shard=f"{index}/2")
    expected = contents(folder)
    (folder / "_manifest.json").unlink()
    (folder / "part-00001.arrow").unlink()
    with pytest.raises(OutputError, match=r"part-00001.arrow was lost .*, and those of the other --shard$"):
        embed([articles], f"{folder}/", encoder=encoder, column="text", shard="0/2")
    embed([articles], f"{folder}/", encoder=encoder, column="text", shard="1/2")
    assert contents(folder) == expected


def test_a_shard_is_finished_though_its_work_cannot_be_deleted(
    encoder: Encoder, folder: Path, with_errors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def fail(path: Path, missing_ok: bool = False) -> None:
        if "_work" in path.parts and path.name.endswith(".errors.jsonl"):
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", fail)
    assert embed([with_errors], f"{folder}/", encoder=encoder, shard_rows=60).errors == 2
    assert not (folder / "_work").exists()


def test_what_was_left_of_another_job_is_not_of_this_one(articles: Path, encoder: Encoder, folder: Path) -> None:
    """Its receipts and its unfinished work stay if its other files are deleted by hand."""
    embed([articles], f"{folder}/", encoder=encoder, column="title")
    with pytest.raises(Killed):
        embed([articles], f"{folder}/", encoder=encoder, column="title", overwrite=True, progress=kill_after(4))
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    assert list(folder.glob("_receipts/*/*.json"))
    assert list(folder.glob("_work/*/*"))
    embed([articles], f"{folder}/", encoder=encoder, column="text", shard_rows=70)
    assert verify_folder(LocalFolder(folder)).return_code == 0
    assert pa.dataset.dataset(folder, format="ipc").count_rows() == 300


def test_a_resume_needs_no_room_for_what_is_there(
    articles: Path, encoder: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 100

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "publish", fail_to_publish)
        with pytest.raises(OutputError, match="no"):
            embed([articles], f"{folder}/", encoder=encoder, column="text", limit=60)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(DiskFullError, match="needs at least 15,840 bytes more and 100 are free"):
        embed([articles], f"{folder.parent}/other/", encoder=encoder, column="text", limit=60)
    assert embed([articles], f"{folder}/", encoder=encoder, column="text", limit=60).rows == 60


def test_work_that_another_process_deletes_meanwhile_is_not_missed(
    articles: Path, encoder: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "publish", fail_to_publish)
        with pytest.raises(OutputError, match="no"):
            embed([articles], f"{folder}/", encoder=encoder, column="text", limit=60)
    (next((folder / "_work").iterdir()) / "gone").symlink_to("nothing")  # listed, and not there for its size
    usage = shutil.disk_usage

    def deleted(path: Path) -> Any:
        shutil.rmtree(folder / "_work", ignore_errors=True)
        return usage(path)

    monkeypatch.setattr("shutil.disk_usage", deleted)
    assert embed([articles], f"{folder}/", encoder=encoder, column="text", limit=60).rows == 60


def fail_to_publish(self: LocalFolder, path: Path, name: str) -> None:
    raise OutputError("no")


def test_a_shard_that_another_process_finishes_meanwhile_is_theirs(
    articles: Path, encoder: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While this one loads its model; and, where nothing locks, while it writes."""
    job = partial(embed, [articles], f"{folder}/", encoder=encoder, column="text", shard="0/5")
    embed([articles], f"{folder}/", encoder=encoder, column="text")
    (receipt,) = folder.glob("_receipts/*/0.json")
    theirs, manifest = receipt.read_bytes(), folder / "_manifest.json"
    for moment in ("load", "_write"):
        manifest.unlink()
        receipt.unlink()
        own = getattr(ShardWorker, moment)

        def meanwhile(self: ShardWorker, *arguments: Any, own: Callable[..., Any] = own) -> Any:
            result = own(self, *arguments)
            receipt.write_bytes(theirs)
            return result

        with monkeypatch.context() as patch:
            patch.setattr(ShardWorker, moment, meanwhile)
            patch.setattr(LocalFolder, "publish", fail_to_publish)
            assert job().missing_shards == 0
        assert verify_folder(LocalFolder(folder)).return_code == 0


def test_a_shard_that_two_processes_published_with_other_bytes_is_done_again(
    articles: Path, encoder: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed([articles], f"{folder}/", encoder=encoder, column="text")
    (receipt,) = folder.glob("_receipts/*/0.json")
    theirs = sealed({**read_sealed(receipt.read_bytes()), "checksum": "0badc0de"})
    (folder / "_manifest.json").unlink()
    receipt.unlink()
    publish = LocalFolder.publish

    def publish_both(self: LocalFolder, path: Path, name: str) -> None:
        publish(self, path, name)
        receipt.write_bytes(theirs)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "publish", publish_both)
        with pytest.raises(OutputError, match="shard 0 was embedded by two processes at the same time"):
            embed([articles], f"{folder}/", encoder=encoder, column="text")
    assert embed([articles], f"{folder}/", encoder=encoder, column="text").rows == 300
    assert verify_folder(LocalFolder(folder)).return_code == 0


# of the calls that delete a manifest, five receipts, five shards, and two files
@pytest.mark.parametrize("kill_at", [slow(0), 6, slow(12)])
def test_an_overwrite_that_is_killed_while_it_deletes_is_done_again(
    articles: Path, encoder: Encoder, folder: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    def job(limit: int, *, overwrite: bool = False) -> int:
        return embed(articles, f"{folder}/", encoder=encoder, column="text", limit=limit, overwrite=overwrite).rows

    remove, calls = LocalFolder.remove, list[str]()

    def killed(self: LocalFolder, name: str) -> None:
        if len(calls) == kill_at:
            raise Killed
        calls.append(name)
        remove(self, name)

    job(290)
    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "remove", killed)
        with pytest.raises(Killed):
            job(300, overwrite=True)
    with pytest.raises(RefusedError, match="rows was 290, now 300"):
        job(300)
    assert job(300, overwrite=True) == 300
    assert verify_folder(LocalFolder(folder)).return_code == 0


def test_a_shard_and_the_record_are_gone(articles: Path, encoder: Encoder, folder: Path) -> None:
    embed([articles], f"{folder}/", encoder=encoder, column="text")
    for name in ("_job.json", "part-00002.arrow"):
        (folder / name).unlink()
    with pytest.raises(OutputError, match=r"part-00002.arrow is missing or was cut, and so is _job.json"):
        embed([articles], f"{folder}/", encoder=encoder, column="text")
    assert embed([articles], f"{folder}/", encoder=encoder, column="text", overwrite=True).rows == 300
    assert verify_folder(LocalFolder(folder)).return_code == 0
