"""What is an address, and which ones are refused because they would carry credentials into messages and metadata."""

import pytest

from fastvec.errors import UsageError
from fastvec.stores.address import Address, is_remote


@pytest.mark.parametrize(
    ("url", "path", "name"),
    [
        ("s3://bucket/a/vecs.arrow", "bucket/a/vecs.arrow", "vecs.arrow"),
        ("S3://bucket/folder//", "bucket/folder", "folder"),
        ("abfs://container@account.dfs.core.windows.net/x", "container@account.dfs.core.windows.net/x", "x"),
        ("hf://buckets/org/name/x.parquet", "buckets/org/name/x.parquet", "x.parquet"),
        ("s3://bucket/day=?/part-[0-9].parquet", "bucket/day=?/part-[0-9].parquet", "part-[0-9].parquet"),
    ],
)
def test_an_address_is_a_scheme_and_a_path(url: str, path: str, name: str) -> None:
    address = Address.parse(url)
    assert (address.path, address.name, is_remote(url)) == (path, name, True)
    assert str(address) == f"{address.scheme}://{path}"
    assert address.scheme == url.partition(":")[0].lower()


def test_a_local_file_has_no_address() -> None:
    with pytest.raises(UsageError, match=r"the address of a local file was given \(file://\): give its path"):
        Address.parse("file:///tmp/vecs.arrow")


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIASECRET:planted-secret@bucket/x",
        "s3://planted-secret@bucket/x",
        "abfs://container:planted-secret@account/x",
        "https://user:planted-secret@example.org/a.parquet",
        "s3://bucket/x.arrow?access_key=planted-secret",
        "https://example.org/x.parquet?versionId=1&X-Amz-Signature=planted-secret",
        "simplecache::s3://bucket/planted-secret",
        "s3://bucket/planted-secret::file:///etc",
    ],
)
def test_credentials_and_parameters_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        Address.parse(url)
    assert "planted-secret" not in str(refused.value)


@pytest.mark.parametrize("path", ["vecs.arrow", "/data/vecs.arrow", "c:/data", "a:b", "-"])
def test_a_local_path_is_no_address(path: str) -> None:
    assert not is_remote(path)


def test_where_an_address_is() -> None:
    folder = Address.parse("s3://bucket/in/")
    assert (folder / "a.parquet").is_inside(folder)
    assert not Address.parse("s3://bucket/inner/a.parquet").is_inside(folder)
    assert not Address.parse("gs://bucket/in/a.parquet").is_inside(folder)
    assert folder.with_name("out") == Address.parse("s3://bucket/out")
    names = ["s3://b/a-b", "s3://b/a/z", "s3://b/a"]
    assert sorted(names, key=lambda url: Address.parse(url).sort_key) == ["s3://b/a", "s3://b/a/z", "s3://b/a-b"]
