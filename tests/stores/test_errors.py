"""Errors of a store's library become one line each, which has none of the library's own words."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastvec.errors import InputError, OutputError
from fastvec.stores import store
from fastvec.stores.address import Address
from fastvec.stores.errors import translated_store_errors

PLACE = Address.parse("s3://bucket/x")


class ClientError(Exception):
    """As botocore raises it."""

    def __init__(self, code: str) -> None:
        super().__init__(f"planted-secret ({code})")
        self.response = {"Error": {"Code": code, "Message": "planted-secret"}}


class NoCredentialsError(Exception):
    pass


class EndpointConnectionError(Exception):
    pass


class ClientResponseError(Exception):
    """As aiohttp raises it."""

    def __init__(self, status: int) -> None:
        super().__init__("planted-secret")
        self.status = status


class FileExpired(OSError):
    pass


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError("planted-secret"), "the store denies access"),
        (ClientResponseError(403), "the store denies access"),
        (caused(PermissionError("x"), ClientError("SignatureDoesNotMatch")), r"credentials \(SignatureDoesNotMatch\)"),
        (caused(PermissionError("x"), ClientError("ExpiredToken")), r"credentials \(ExpiredToken\)"),
        (NoCredentialsError("planted-secret"), "no credentials were found"),
        (
            EndpointConnectionError("planted-secret"),
            r"does not answer \(EndpointConnectionError\), also when tried again",
        ),
        (caused(OSError(5, "planted-secret"), ClientError("SlowDown")), r"the store failed \(SlowDown\)"),
        (caused(OSError(5, "planted-secret"), ClientError("NewCode")), r"the store's answer was an error \(NewCode\)"),
        (ClientError("ContainerNotFound"), "there is no such bucket"),
        (FileExpired("planted-secret"), "changed while it was being read"),
        (RuntimeError("planted-secret"), r"the store's answer was an error \(RuntimeError\)"),
    ],
)
@pytest.mark.parametrize("kind", [InputError, OutputError])
def test_an_error_of_a_library_is_one_line(error: Exception, message: str, kind: Any) -> None:
    with pytest.raises(kind, match=f"^s3://bucket/x: .*{message}") as raised, translated_store_errors(PLACE, kind):
        raise error
    assert "planted-secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("scheme", "package", "extra"), [("gs", "gcsfs", "gcs"), ("abfs", "adlfs", "azure")])
def test_a_package_that_is_missing_is_named_by_its_extra(
    scheme: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"pip install 'fastvec\[{extra}\]'"):
        store.find(Address(scheme, "bucket/x"))


def test_a_scheme_that_nobody_knows() -> None:
    with pytest.raises(InputError, match="nowhere:// is not an address that fsspec knows"):
        store.find(Address("nowhere", "bucket/x"))


@pytest.mark.parametrize("where", ["datasets/org/name", "buckets/org/name"])
def test_a_file_on_the_hub_is_one_commit(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub itself is not asked: this is what its client is told to do."""
    told: list[Any] = []

    class Api:
        def __init__(self, **_: Any) -> None: ...

        def upload_file(self, **options: Any) -> None:
            told.append(options)

        def batch_bucket_files(self, bucket: str, *, add: Any) -> None:
            told.append((bucket, add))

    place = SimpleNamespace(path_in_repo="v/x.arrow", repo_id="org/name", repo_type="dataset", revision="main")
    if where.startswith("buckets"):
        place = SimpleNamespace(bucket_id="org/name", path="v/x.arrow")
    local = tmp_path / "x.arrow"
    local.write_bytes(b"content")
    system = SimpleNamespace(
        endpoint=None,
        token=None,
        resolve_path=lambda path: place,
        invalidate_cache=lambda: None,
        info=lambda path: {"type": "file", "size": 7},
    )
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr(store, "connected", lambda address: (system, address.path))
    assert store.upload(local, Address("hf", f"{where}/v/x.arrow"))
    if where.startswith("buckets"):
        assert told == [("org/name", [(str(local), "v/x.arrow")])]
    else:
        expected = {"path_in_repo": "v/x.arrow", "repo_id": "org/name", "repo_type": "dataset", "revision": "main"}
        assert told == [{"path_or_fileobj": str(local), **expected}]
