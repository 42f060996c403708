"""What goes wrong between a run and a real S3 server: refused, broken and slow answers, kills, wrong credentials."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fastvec import Encoder, embed
from fastvec.errors import FastvecError, InputError, OutputError
from fastvec.stores import store
from fastvec.stores.address import Address
from tests import ARTICLES
from tests.helpers.corpora import write_parquet
from tests.helpers.fault_proxy import Faults, fault_proxy
from tests.helpers.processes import environment
from tests.helpers.s3 import CORPUS, READER_KEY, READER_SECRET, SECRETS, VECTORS, S3Server, environment_of
from tests.stores.conftest import forget_clients

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_chunks")]
ROWS = pq.read_table(ARTICLES, columns=["text"])  # 300, more than is read ahead


@pytest.fixture
def place(s3: S3Server, tmp_path: Path) -> str:
    """A folder of each bucket: a part of their addresses."""
    local = write_parquet(tmp_path / "a.parquet", ROWS, group_rows=20)
    store.upload(local, Address("s3", f"{CORPUS}/{tmp_path.name}/a.parquet"))
    return tmp_path.name


@pytest.fixture
def faults(s3: S3Server, place: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """The faults of a proxy, through which this process reaches the server from now on."""
    with fault_proxy(s3.port) as (url, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        forget_clients()
        yield faults
    forget_clients()


@pytest.fixture
def expected(encoder: Encoder, tmp_path: Path, place: str) -> bytes:
    """The output's bytes without a fault."""
    address = f"s3://{VECTORS}/{place}/expected.arrow"
    embed(f"s3://{CORPUS}/{place}/a.parquet", address, encoder=encoder, column="text")
    return store.read(Address.parse(address))


def names(place: str) -> set[str]:
    return set(store.sizes_in(Address("s3", f"{VECTORS}/{place}"))) - {"expected.arrow"}


def run(place: str, encoder: Encoder, **options: Any) -> Any:
    output = f"s3://{VECTORS}/{place}/vecs.arrow"
    return embed(f"s3://{CORPUS}/{place}/a.parquet", output, encoder=encoder, column="text", **options)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
@pytest.mark.parametrize("fault", ["refused", "broken"])
def test_refused_and_broken_answers_are_asked_for_again(
    expected: bytes, faults: Faults, place: str, encoder: Encoder, fault: str, method: str
) -> None:
    faults.affects = lambda line: line.startswith(method)
    setattr(faults, fault, 3)
    run(place, encoder)
    assert getattr(faults, fault) == 0
    assert store.read(Address("s3", f"{VECTORS}/{place}/vecs.arrow")) == expected


def test_slow_answers_are_waited_for(expected: bytes, faults: Faults, place: str, encoder: Encoder) -> None:
    faults.seconds = 0.05
    run(place, encoder)
    assert store.read(Address("s3", f"{VECTORS}/{place}/vecs.arrow")) == expected


def test_a_store_that_goes_away_ends_the_run_which_resumes(
    expected: bytes, faults: Faults, place: str, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)
    forget_clients()
    with pytest.raises(InputError, match=r"a\.parquet: the store does not answer \(\w+\), also when tried again"):
        run(place, encoder, progress=lambda progress: setattr(faults, "down", True))
    faults.down = False
    assert names(place) == set()
    assert run(place, encoder).resumed_rows > 0
    assert store.read(Address("s3", f"{VECTORS}/{place}/vecs.arrow")) == expected


def test_a_store_that_goes_away_before_the_upload_keeps_the_work(
    expected: bytes, faults: Faults, place: str, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    forget_clients()
    faults.on_request = lambda line: setattr(faults, "down", faults.down or line.startswith("PUT"))
    with pytest.raises(OutputError, match=r"vecs\.arrow: the store does not answer") as failed:
        run(place, encoder)
    assert "\n" not in str(failed.value)
    faults.on_request, faults.down = lambda line: None, False
    assert names(place) == set()
    assert run(place, encoder).already_finished
    assert store.read(Address("s3", f"{VECTORS}/{place}/vecs.arrow")) == expected


def command(place: str, model: Path, spool: Path, **changed: str) -> "subprocess.Popen[str]":
    output = f"s3://{VECTORS}/{place}/vecs.arrow"
    arguments = ["embed", f"s3://{CORPUS}/{place}/a.parquet", "-o", output, "--column", "text"]
    arguments += ["--model", str(model), "--device", "cpu", "--dtype", "float32"]
    return subprocess.Popen(
        [sys.executable, "-m", "fastvec", *arguments],
        env={**environment(), "FASTVEC_SPOOL": str(spool), **changed},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_process_killed_while_it_uploads_leaves_nothing_and_resumes(
    faults: Faults, place: str, tiny_llama: Path, spool: Path
) -> None:
    uploading = threading.Event()
    faults.on_request = partial(_note, uploading)
    faults.affects = lambda line: line.startswith("PUT")
    faults.seconds = 2  # between the request and its body
    process = command(place, tiny_llama, spool)
    assert uploading.wait(120)
    process.kill()
    process.communicate()
    assert names(place) == set()
    faults.seconds = 0
    again = command(place, tiny_llama, spool)
    printed = again.communicate(timeout=120)
    assert again.returncode == 0, printed
    assert "is already finished: 300 rows" in printed[1]
    assert names(place) == {"vecs.arrow"}
    assert list(spool.iterdir()) == []


PARTS = """
import sys
from pathlib import Path
from fastvec.stores.address import Address
from fastvec.stores.store import upload
upload(Path(sys.argv[1]), Address.parse(sys.argv[2]))
"""


def test_a_process_killed_between_two_parts_leaves_nothing(faults: Faults, place: str, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(160 << 20))  # four parts
    second = threading.Event()
    faults.on_request = lambda line: second.set() if "partNumber=4" in line else None
    arguments = [sys.executable, "-c", PARTS, str(large), f"s3://{VECTORS}/{place}/large"]
    process = subprocess.Popen(arguments, env=environment())
    assert second.wait(120)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert names(place) == set()


@pytest.mark.parametrize(
    ("changed", "where", "message"),
    [
        ({}, "s3://no-such-bucket/a.parquet", "no such file, folder or bucket"),
        ({}, f"s3://{CORPUS}/missing.parquet", "no such file, folder or bucket"),
        ({"AWS_SECRET_ACCESS_KEY": "planted/wrong"}, f"s3://{CORPUS}/a.parquet", "the store denies access"),
        ({"AWS_SECRET_ACCESS_KEY": "planted/wrong"}, f"s3://{CORPUS}/*.parquet", r"accept the credentials \(Signature"),
        ({"AWS_ACCESS_KEY_ID": "PLANTEDWRONG"}, f"s3://{CORPUS}/*.parquet", r"accept the credentials \(InvalidAccess"),
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            f"s3://{CORPUS}/a.parquet",
            "no credentials were found",
        ),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, f"s3://{CORPUS}/a.parquet", "the store does not answer"),
        ({"AWS_ENDPOINT_URL": "no url"}, f"s3://{CORPUS}/a.parquet", "the store's answer was an error"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_without_credentials(
    s3: S3Server,
    encoder: Encoder,
    changed: dict[str, str],
    where: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    forget_clients()
    with pytest.raises(FastvecError, match=message) as failed:
        embed(where, f"s3://{VECTORS}/vecs.arrow", encoder=encoder)
    forget_clients()
    assert str(failed.value).startswith(where.partition("*")[0].rstrip("/"))
    assert "\n" not in str(failed.value)
    assert not any(secret in str(failed.value) for secret in (*SECRETS, "planted", "PLANTED"))


@pytest.mark.parametrize(
    ("bucket", "key", "message"),
    [
        ("no-such-bucket", None, "there is no such bucket: make it first"),
        (VECTORS, READER_KEY, "the store denies access"),
    ],
)
def test_a_bucket_that_cannot_be_written_ends_the_run_in_one_line(
    s3: S3Server,
    place: str,
    encoder: Encoder,
    bucket: str,
    key: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if key is not None:
        for name, value in environment_of(s3.url, key, READER_SECRET).items():
            monkeypatch.setenv(name, value)
        forget_clients()
    with pytest.raises(OutputError, match=message) as failed:
        embed(f"s3://{CORPUS}/{place}/a.parquet", f"s3://{bucket}/{place}.arrow", encoder=encoder, column="text")
    forget_clients()
    assert not any(secret in str(failed.value) for secret in SECRETS)


def test_credentials_are_in_nothing_that_a_run_prints_or_writes(
    faults: Faults, place: str, tiny_llama: Path, spool: Path, tmp_path: Path
) -> None:
    for stop in (True, False):
        if stop:
            started = threading.Event()
            faults.on_request = partial(_note, started)
            faults.affects, faults.seconds = lambda line: line.startswith("PUT"), 2
        process = command(place, tiny_llama, spool)
        if stop:
            assert started.wait(120)
            process.kill()
        texts = "".join(process.communicate(timeout=120))
        contents = [path.read_bytes() for path in spool.rglob("*") if path.is_file()]
        assert stop == bool(contents)
        contents += [store.read(Address("s3", f"{VECTORS}/{place}/{name}")) for name in names(place)]
        for secret in SECRETS:
            assert secret not in texts
            assert not any(secret.encode() in content for content in contents)
    assert names(place) == {"vecs.arrow"}


def _note(uploading: threading.Event, line: str) -> None:
    if line.startswith("PUT"):
        uploading.set()


MEMORY = """
import sys
from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import ChunkLimits
from fastvec.report import peak_memory_bytes
corpus = open_corpus([sys.argv[1]], column="text")
before = peak_memory_bytes()
rows = sum(len(chunk.texts) for chunk in corpus.chunks(ChunkLimits(rows=1000, bytes=1 << 20)))
print(rows, (peak_memory_bytes() - before) >> 20)
"""


@pytest.mark.parametrize("name", ["large.parquet", "large.txt"])
def test_memory_does_not_grow_with_the_file(s3: S3Server, tmp_path: Path, name: str) -> None:
    """The files have 100 MB and 120 MB, the Parquet file in one row group; pyarrow's own read would take all of it."""
    import pyarrow as pa

    texts = [os.urandom(500).hex() for _ in range(120_000)]
    local = tmp_path / name
    if name.endswith("txt"):
        local.write_text("\n".join(texts))
    else:
        pq.write_table(pa.table({"text": texts}), local, row_group_size=len(texts), use_dictionary=False)
    address = Address("s3", f"{CORPUS}/{tmp_path.name}/{name}")
    store.upload(local, address)
    process = subprocess.run(
        [sys.executable, "-c", MEMORY, str(address)], env=environment(), check=True, capture_output=True, text=True
    )
    rows, grown = map(int, process.stdout.split())
    assert rows == 120_000
    assert grown < 60  # MB: two blocks of 8 MiB of a stream, requests of 4 MiB, and chunks of 1 MiB
