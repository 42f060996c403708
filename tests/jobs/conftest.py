from pathlib import Path

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
    """The 300 articles in a single row group, which is divided into shards of 60 rows."""
    return write_parquet(tmp_path_factory.mktemp("input") / "articles.parquet", pq.read_table(ARTICLES))


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
