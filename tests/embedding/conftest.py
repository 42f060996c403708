from pathlib import Path
from typing import Any

import pytest

from fastvec import Encoder
from fastvec.texts.tokenized import TokenizedTexts


@pytest.fixture(scope="module")
def encoder(tiny_llama: Path) -> Encoder:
    return Encoder.from_pretrained(tiny_llama, dtype="float32", device="cpu")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit chunks to 40 rows, so that 300 rows make several chunks."""
    monkeypatch.setattr(Encoder, "chunk_limits", {"rows": 40, "bytes": 16_000})


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "vecs.arrow"


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
