"""Outputs in a store: the bytes of a local output, resumable, and refused for another job."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fastvec.encoder
from fastvec import Encoder, embed
from fastvec.cli.entry import main
from fastvec.errors import OutputError, RefusedError, UsageError
from fastvec.stores import store
from fastvec.stores.address import Address
from tests import ARTICLES
from tests.helpers.kills import Killed, kill_after

pytestmark = pytest.mark.usefixtures("small_chunks")
ROWS = pq.read_table(ARTICLES, columns=["title", "text"]).slice(0, 60)


@pytest.fixture
def options(encoder: Encoder) -> dict[str, Any]:
    return {"encoder": encoder, "column": "text", "keep": ["title"]}


@pytest.fixture
def corpus(folder: Address, tmp_path: Path) -> str:
    """A corpus of 60 rows in the store; the last has no text that can be read."""
    lines = [json.dumps(row) for row in ROWS.to_pylist()[:-1]]
    store.create(folder / "in/a.jsonl", "\n".join([*lines, "no object"]).encode())
    return f"{folder}/in"


def content(address: Address) -> bytes:
    return store.read(address)


@pytest.mark.parametrize("name", ["vecs.arrow", "vecs.parquet"])
def test_an_output_has_the_bytes_of_a_local_one(
    folder: Address, corpus: str, options: dict[str, Any], tmp_path: Path, spool: Path, name: str
) -> None:
    local = tmp_path / name
    embed(corpus, local, **options)
    report = embed(corpus, f"{folder}/{name}", **options)
    errors = "vecs.errors.jsonl" if name == "vecs.arrow" else "vecs.parquet.errors.jsonl"
    assert content(folder / name) == local.read_bytes()
    assert content(folder / errors) == (tmp_path / errors).read_bytes()
    assert set(store.sizes_in(folder)) == {name, errors}
    assert (report.output, report.rows, report.errors) == (f"{folder}/{name}", 60, 1)
    assert list(spool.iterdir()) == []


def test_a_killed_run_resumes(folder: Address, corpus: str, options: dict[str, Any], tmp_path: Path) -> None:
    embed(corpus, tmp_path / "vecs.arrow", **options)
    with pytest.raises(Killed):
        embed(corpus, f"{folder}/vecs.arrow", **options, progress=kill_after(3))
    assert store.sizes_in(folder) == {}
    assert embed(corpus, f"{folder}/vecs.arrow", **options).resumed_rows == 27
    assert content(folder / "vecs.arrow") == (tmp_path / "vecs.arrow").read_bytes()


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_was_not_uploaded_is_uploaded_without_the_model(
    folder: Address,
    corpus: str,
    options: dict[str, Any],
    tmp_path: Path,
    spool: Path,
    monkeypatch: pytest.MonkeyPatch,
    overwrite: bool,
) -> None:
    def fail(*_: Any, **__: Any) -> bool:
        raise OutputError("the store does not answer")

    with monkeypatch.context() as patch:
        patch.setattr("fastvec.embedding.remote_output.upload", fail)
        with pytest.raises(OutputError, match="does not answer"):
            embed(corpus, f"{folder}/vecs.arrow", **options, overwrite=overwrite)
    monkeypatch.setattr(fastvec.encoder, "Encoder", None)
    settings = options.pop("encoder").settings
    report = embed(corpus, f"{folder}/vecs.arrow", encoder=settings, **options, overwrite=overwrite)
    assert (report.already_finished, report.rows) == (True, 60)
    assert set(store.sizes_in(folder)) == {"vecs.arrow", "vecs.errors.jsonl"}
    assert list(spool.iterdir()) == []


@pytest.mark.parametrize("name", ["vecs.arrow", "vecs.parquet"])
def test_a_finished_output_is_left_alone_and_another_jobs_refused(
    folder: Address, corpus: str, options: dict[str, Any], spool: Path, name: str
) -> None:
    output = f"{folder}/{name}"
    embed(corpus, output, **options)
    before = store.find(folder / name)
    assert embed(corpus, output, **options).already_finished
    with pytest.raises(RefusedError, match=rf"{name} belongs to another job: rows was 60, now 50|was started for 60"):
        embed(corpus, output, **options, limit=50)
    assert store.find(folder / name) == before
    assert list(spool.iterdir()) == []
    assert embed(corpus, output, **options, limit=50, overwrite=True).rows == 50
    assert set(store.sizes_in(folder)) == {name}  # no row failed, so there is no errors file any more


def test_unfinished_work_of_another_job_is_refused(folder: Address, corpus: str, options: dict[str, Any]) -> None:
    with pytest.raises(Killed):
        embed(corpus, f"{folder}/vecs.arrow", **options, progress=kill_after(3))
    with pytest.raises(RefusedError, match=r"vecs\.arrow\.part was started for 60 rows"):
        embed(corpus, f"{folder}/vecs.arrow", **options, limit=50)
    assert embed(corpus, f"{folder}/vecs.arrow", **options, limit=50, overwrite=True).resumed_rows == 0


@pytest.mark.parametrize("name", ["vecs.arrow", "vecs.errors.jsonl"])
def test_a_file_that_is_not_fastvecs_is_not_overwritten(
    folder: Address, corpus: str, options: dict[str, Any], name: str
) -> None:
    store.create(folder / name, b"somebody's")
    with pytest.raises(RefusedError, match=f"{name} is not a"):
        embed(corpus, f"{folder}/vecs.arrow", **options)
    assert content(folder / name) == b"somebody's"
    embed(corpus, f"{folder}/vecs.arrow", **options, overwrite=True)
    assert content(folder / "vecs.arrow").startswith(b"ARROW1")


def test_a_file_that_appears_meanwhile_is_not_replaced(
    folder: Address, corpus: str, options: dict[str, Any], spool: Path
) -> None:
    def write_another(_: object) -> None:
        store.create(folder / "vecs.arrow", b"somebody's")

    with pytest.raises(RefusedError, match=r"vecs\.arrow is not a finished fastvec output"):
        embed(corpus, f"{folder}/vecs.arrow", **options, progress=write_another)
    assert content(folder / "vecs.arrow") == b"somebody's"
    store.remove(folder / "vecs.arrow")
    assert embed(corpus, f"{folder}/vecs.arrow", **options).already_finished  # only the upload was left to do
    assert list(spool.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vecs.npy", r"embed to .*/vecs\.arrow, then run fastvec convert"),
        ("vecs", r"ends in neither \.arrow nor \.parquet"),
        ("vecs.arrow/", "is a folder with the name of a file: give -o another name, as vecs/"),
    ],
)
def test_an_output_of_another_name_is_refused(
    folder: Address, corpus: str, options: dict[str, Any], name: str, message: str
) -> None:
    with pytest.raises(OutputError, match=message):
        embed(corpus, f"{folder}/{name}", **options)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("s3://key:planted-secret@bucket/vecs.arrow", "contains a user or a password"),
        ("s3://bucket/vecs.arrow?key=planted-secret", "contains parameters"),
        ("nowhere://bucket/vecs.arrow", "is not an address that fsspec knows"),
    ],
)
def test_an_address_that_cannot_be_is_refused(options: dict[str, Any], spool: Path, output: str, message: str) -> None:
    with pytest.raises((UsageError, OutputError), match=message) as refused:
        embed([ARTICLES], output, **options)
    assert "planted-secret" not in str(refused.value)
    assert not spool.exists() or list(spool.iterdir()) == []


def test_vectors_of_an_output_in_a_store_are_not_reused(folder: Address, corpus: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--reuse takes a local file"):
        embed(corpus, f"{folder}/vecs.arrow", **options, reuse=f"{folder}/old.arrow")


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_the_commands_that_read_an_output_take_an_address(
    folder: Address,
    corpus: str,
    options: dict[str, Any],
    command: str,
    spool: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    embed(corpus, f"{folder}/vecs.arrow", **options)
    store.create(folder / "bad.arrow", b"ARROW1\0\0 and more")

    def run(name: str) -> tuple[object, str]:
        monkeypatch.setattr("sys.argv", ["fastvec", command, f"{folder}/{name}"])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out + printed.err

    code, printed = run("vecs.arrow")
    assert code == 0
    assert f"{folder}/vecs.arrow" in printed
    code, printed = run("bad.arrow")
    assert code == 1
    assert f"{folder}/bad.arrow" in printed
    assert str(spool) not in printed
    assert run("missing.arrow") == (1, f"fastvec: {folder}/missing.arrow: no such file or bucket\n")


def test_tables_go_into_a_store(folder: Address, encoder: Encoder, spool: Path) -> None:
    embed(pa.table({"text": ["one", "two"]}), f"{folder}/vecs.arrow", encoder=encoder)
    assert set(store.sizes_in(folder)) == {"vecs.arrow"}
    assert list(spool.iterdir()) == []
