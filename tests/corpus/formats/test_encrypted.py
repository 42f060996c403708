import base64
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyarrow.parquet import encryption

from fastvec.corpus.formats.errors import as_input_errors
from fastvec.corpus.opening import open_corpus
from fastvec.errors import InputError
from tests.helpers.corpora import texts


class Keys(encryption.KmsClient):  # type: ignore[misc]  # pyarrow has no types
    """A stand-in for a key server that hands out every key."""

    def __init__(self) -> None:
        super().__init__()

    def wrap_key(self, key: bytes, _: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, key: bytes, _: str) -> bytes:
        return base64.b64decode(key)


@pytest.mark.parametrize("plaintext_footer", [True, False])
def test_encrypted_parquet_is_named(tmp_path: Path, plaintext_footer: bool) -> None:
    path, table = tmp_path / "c.parquet", texts(["one", None])
    how = encryption.EncryptionConfiguration("f", column_keys={"c": ["text"]}, plaintext_footer=plaintext_footer)
    factory = encryption.CryptoFactory(lambda _: Keys())
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), how)
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as file:
        file.write_table(table)
    with pytest.raises(InputError, match=f"^{path}: encrypted Parquet; write it without encryption$"):
        open_corpus([path])


def test_a_path_that_says_so_is_not_encrypted() -> None:
    path = Path("/encrypted/c.parquet")
    for error in (PermissionError(13, "Permission denied", str(path)), ValueError(f"{path} is damaged")):
        with pytest.raises(InputError, match=f"{path}: cannot be read: "), as_input_errors(path):
            raise error
