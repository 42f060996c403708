from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fastvec import Encoder, embed
from tests import ARTICLES
from tests.helpers.corpora import write_parquet
from tests.helpers.shards import parts_of


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make shards of 60 rows the default, so that 300 rows are five."""
    monkeypatch.setattr("fastvec.corpus.shard_ranges.FEWEST_ROWS", 60)


@pytest.fixture(scope="session")
def articles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginnings of the 300 articles in a single row group, which is divided into shards of 60 rows."""
    table = pq.read_table(ARTICLES)
    beginnings = pc.utf8_slice_codeunits(table["text"], 0, 300)
    table = table.set_column(table.schema.get_field_index("text"), table.schema.field("text"), beginnings)
    return write_parquet(tmp_path_factory.mktemp("input") / "articles.parquet", table)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "output").mkdir()
    return tmp_path / "output" / "vecs"


@pytest.fixture(scope="module")
def expected(articles: Path, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("expected") / "vecs"
    embed([articles], f"{folder}/", encoder=encoder, column="text", shard_rows=60)
    return parts_of(folder)


@pytest.fixture
def same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give all jobs the same id, so that their files can be compared."""
    monkeypatch.setattr("fastvec.jobs.record.new_id", lambda: "0123456789abcdef")
