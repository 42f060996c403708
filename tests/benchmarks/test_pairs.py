from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import pairs


def test_both_are_compared_with_products_and_faiss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "product_rate", lambda vectors, clock: 1e9)
    done = CliRunner().invoke(pairs.main, ["--rows", "40", "--dims", "8", "--faiss", "--folder", str(tmp_path)])
    assert done.exit_code == 0, done.output
    names = ("40 x 8 float32", "dedup", "neighbors, k=10", "FAISS range_search", "FAISS search, k=10", "products once")
    assert [line.startswith(name) for line, name in zip(done.output.splitlines(), names, strict=True)] == [True] * 6
    assert list(tmp_path.iterdir()) == []
