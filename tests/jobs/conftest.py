from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fastvec import Encoder
from fastvec.texts.tokenized import TokenizedTexts
from tests import ARTICLES
from tests.helpers.corpora import write_parquet


@pytest.fixture(scope="session")
def encoder(tiny_llama: Path) -> Encoder:
    return Encoder.from_pretrained(tiny_llama, dtype="float32", device="cpu")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit chunks to 40 rows, so that a shard has several."""
    monkeypatch.setattr(Encoder, "chunk_limits", {"rows": 40, "bytes": 16_000})


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


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each chunk gave to the encoder."""
    counts: list[int] = []
    begin = Encoder.begin

    def counted(self: Encoder, texts: TokenizedTexts, *arguments: Any) -> Any:
        counts.append(len(texts))
        return begin(self, texts, *arguments)

    monkeypatch.setattr(Encoder, "begin", counted)
    return counts


@pytest.fixture
def same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give all jobs the same id, so that their files can be compared."""
    monkeypatch.setattr("fastvec.jobs.record.new_id", lambda: "0123456789abcdef")
