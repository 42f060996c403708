"""An output in shards in a store: the files of a local folder, resumable, by one process or a job array."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fastvec import Encoder, embed, merge
from fastvec.errors import OutputError, RefusedError
from fastvec.settings import resolve_settings
from fastvec.shards.folder import RemoteFolder
from fastvec.shards.inspect import inspect_folder
from fastvec.shards.verify import verify_folder
from fastvec.stores import store
from fastvec.stores.address import Address
from tests import ARTICLES
from tests.helpers.kills import Killed, kill_after

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture(autouse=True)
def same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastvec.jobs.record.new_id", lambda: "0123456789abcdef")


@pytest.fixture
def options(encoder: Encoder) -> dict[str, Any]:
    return {"encoder": encoder, "column": "text", "limit": 60, "shard_rows": 10}


@pytest.fixture
def local(options: dict[str, Any], tmp_path: Path) -> Path:
    embed(ARTICLES, f"{tmp_path}/local/", **options)
    return tmp_path / "local"


def require_equal(folder: Address, local: Path) -> None:
    """Assert that the store has the files of the local folder, and their content."""
    assert set(store.sizes_in(folder)) == {path.name for path in local.iterdir() if path.is_file()}
    (receipts,) = (local / "_receipts").iterdir()
    assert set(store.sizes_in(folder / f"_receipts/{receipts.name}")) == {path.name for path in receipts.iterdir()}
    for path in local.glob("[p_]*.*"):
        assert store.read(folder / path.name) == path.read_bytes(), path.name


def test_the_files_are_those_of_a_local_folder(
    folder: Address, options: dict[str, Any], local: Path, spool: Path, tmp_path: Path
) -> None:
    report = embed(ARTICLES, f"{folder}/vecs/", **options)
    require_equal(folder / "vecs", local)
    assert (report.output, report.rows, report.shards) == (f"{folder}/vecs", 60, 6)
    assert list(spool.iterdir()) == []

    assert embed(ARTICLES, f"{folder}/vecs/", **options).already_finished
    assert verify_folder(RemoteFolder(folder / "vecs")).return_code == 0
    assert inspect_folder(RemoteFolder(folder / "vecs")).rows == 60
    assert list(spool.iterdir()) == []
    merge([f"{folder}/vecs/"], tmp_path / "merged.arrow")
    merge([local], tmp_path / "expected.arrow")
    assert (tmp_path / "merged.arrow").read_bytes() == (tmp_path / "expected.arrow").read_bytes()
    assert list(spool.iterdir()) == []


def test_a_table_goes_into_shards(folder: Address, options: dict[str, Any], spool: Path) -> None:
    embed(pa.table({"text": ["one", "two"]}), f"{folder}/vecs/", **options)
    assert verify_folder(RemoteFolder(folder / "vecs")).return_code == 0
    assert list(spool.iterdir()) == []


def test_a_killed_run_and_a_job_array(folder: Address, options: dict[str, Any], local: Path) -> None:
    with pytest.raises(Killed):
        embed(ARTICLES, f"{folder}/vecs/", **options, shard="0/2", progress=kill_after(3))
    assert set(store.sizes_in(folder / "vecs")) >= {"_job.json", "part-00000.arrow"}
    for part in ("1/2", "0/2"):
        report = embed(ARTICLES, f"{folder}/vecs/", **options, shard=part)
    assert report.missing_shards == 0
    require_equal(folder / "vecs", local)


def test_a_shard_whose_upload_fails_is_uploaded_by_the_same_command(
    folder: Address, options: dict[str, Any], local: Path, monkeypatch: pytest.MonkeyPatch, encoder: Encoder
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OutputError("the store does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(store, "upload", fail)
        with pytest.raises(OutputError, match="the store does not answer"):
            embed(ARTICLES, f"{folder}/vecs/", **options)
    assert embed(ARTICLES, f"{folder}/vecs/", **options).rows == 60
    require_equal(folder / "vecs", local)


def test_another_job_is_refused(folder: Address, options: dict[str, Any], spool: Path) -> None:
    embed(ARTICLES, f"{folder}/vecs/", **options)
    with pytest.raises(RefusedError, match='vecs belongs to another job: column was "text", now "title"'):
        embed(ARTICLES, f"{folder}/vecs/", **{**options, "column": "title"})
    assert list(spool.iterdir()) == []
    store.create(folder / "other/notes.txt", b"mine")
    with pytest.raises(RefusedError, match=r"has other files, such as notes.txt"):
        embed(ARTICLES, f"{folder}/other/", **options)
    report = embed(ARTICLES, f"{folder}/vecs/", **{**options, "column": "title"}, overwrite=True)
    assert (report.rows, report.already_finished) == (60, False)


def test_a_pattern_leaves_out_the_shards_of_the_run(folder: Address, options: dict[str, Any]) -> None:
    store.create(folder / "a.parquet", ARTICLES.read_bytes())
    for finished in (False, True):
        report = embed(f"{folder}/**/*.[ap]*", f"{folder}/vecs/", **options)
        assert report.already_finished == finished


def test_a_damaged_shard_is_named_and_not_its_copy(folder: Address, options: dict[str, Any], spool: Path) -> None:
    embed(ARTICLES, f"{folder}/vecs/", **options)
    store.remove(folder / "vecs/part-00001.arrow")
    store.create(folder / "vecs/part-00001.arrow", b"ARROW1\0\0")
    found = verify_folder(RemoteFolder(folder / "vecs"))
    assert found.return_code == 1
    assert "part-00001.arrow starts as an Arrow IPC file but has no valid footer" in str(found)
    assert str(spool) not in str(found)


def test_another_job_is_refused_by_the_address(folder: Address, options: dict[str, Any]) -> None:
    embed(ARTICLES, f"{folder}/vecs/", **options)
    with pytest.raises(RefusedError, match=f"^{folder}/vecs belongs to another job: rows was 60, now 50"):
        embed(ARTICLES, f"{folder}/vecs/", **{**options, "limit": 50})


@pytest.mark.slow
def test_several_processes_write_one_folder(
    folder: Address, options: dict[str, Any], local: Path, tiny_llama: Path
) -> None:
    if folder.scheme == "memory":
        pytest.skip("processes do not share a memory")
    settings = resolve_settings(tiny_llama, device="cpu", dtype="float32")
    report = embed(ARTICLES, f"{folder}/vecs/", **{**options, "encoder": settings}, devices="cpu:2")
    assert (report.rows, report.missing_shards) == (60, 0)
    assert set(store.sizes_in(folder / "vecs")) == {path.name for path in local.iterdir() if path.is_file()}
    assert verify_folder(RemoteFolder(folder / "vecs")).return_code == 0
