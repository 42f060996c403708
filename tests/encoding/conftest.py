import pytest

from fastvec import Encoder


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Limit chunks to 8 texts, and return this number."""
    monkeypatch.setattr(Encoder, "chunk_limits", {"rows": 8, "bytes": 16_000, "row_bytes": 2048})
    return 8


@pytest.fixture(params=[0, 1], ids=["encoding here", "encoding in a thread"])
def chunks_ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Encode in the caller's thread, as on a CPU, or in a thread and a chunk ahead, as on a GPU."""
    monkeypatch.setattr(Encoder, "chunks_ahead", request.param)
    return int(request.param)
