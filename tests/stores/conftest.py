from collections.abc import Iterator
from pathlib import Path

import pytest

from fastvec import Encoder
from fastvec.stores.address import Address
from tests.helpers.s3 import CORPUS, VECTORS, S3Server, environment_of, s3_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running S3 server with two empty buckets."""
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment_of(running.url).items():
                patch.setenv(name, value)
            make_buckets()
        yield running


def make_buckets() -> None:
    import s3fs

    system = s3fs.S3FileSystem(skip_instance_cache=True)
    for bucket in (CORPUS, VECTORS):
        system.mkdir(bucket)


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTVEC_SPOOL", str(tmp_path / "spool"))
    return tmp_path / "spool"


@pytest.fixture
def s3(server: S3Server, spool: Path, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with its owner's credentials in the environment, and a spool folder of the test."""
    for name, value in environment_of(server.url).items():
        monkeypatch.setenv(name, value)
    forget_clients()
    return server


def forget_clients() -> None:
    """Drop fsspec's clients: they keep the credentials and the address of the environment they were made in."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, spool: Path, tmp_path: Path) -> Iterator[Address]:
    """An empty folder of a store: in this process's memory, and on a real S3 server if there is one."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        yield Address("s3", f"{VECTORS}/{tmp_path.name}")
        return
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem.store.clear()
    yield Address("memory", f"bucket/{tmp_path.name}")
    MemoryFileSystem.store.clear()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit chunks to nine rows."""
    monkeypatch.setattr(Encoder, "chunk_limits", {"rows": 9, "bytes": 1 << 20})
