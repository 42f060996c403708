"""Search in outputs that are in a store, with texts that are in it too."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fastvec import Encoder, embed, search
from fastvec.errors import OutputError
from fastvec.stores import store
from fastvec.stores.address import Address
from tests import ARTICLES

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_files_and_folders_of_a_store_are_searched(
    folder: Address, encoder: Encoder, tmp_path: Path, spool: Path
) -> None:
    few = pq.read_table(ARTICLES).slice(0, 90)
    pq.write_table(few, tmp_path / "few.parquet", row_group_size=30)
    store.create(folder / "in/few.parquet", (tmp_path / "few.parquet").read_bytes())
    embed(f"{folder}/in", f"{folder}/vecs.arrow", encoder=encoder, column="text")
    embed(f"{folder}/in", f"{folder}/vecs/", encoder=encoder, column="text", shard_rows=30)
    embed(tmp_path / "few.parquet", tmp_path / "vecs.arrow", encoder=encoder, column="text")
    local = search(tmp_path / "vecs.arrow", ["a film", "a moth"], k=5, encoder=encoder).hits
    assert local is not None
    assert local["text"].to_pylist() == few["text"].take(local["row"]).to_pylist()
    for output in (f"{folder}/vecs.arrow", f"{folder}/vecs/"):
        found = search(output, ["a film", "a moth"], k=5, encoder=encoder).hits
        assert found is not None
        assert found.drop_columns("score").equals(local.drop_columns("score"))
    assert list(spool.iterdir()) == []
    with pytest.raises(OutputError, match="no such file or bucket"):
        search(f"{folder}/none.arrow", "x", encoder=encoder)
