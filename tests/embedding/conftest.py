from pathlib import Path

import pytest

from fastvec import Encoder


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
