import pytest

from fastvec.pairs import against, dedup, nearest, neighbors
from fastvec.pairs.products import Products, TorchProducts


@pytest.fixture(params=["numpy", "torch"])
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, compared by NumPy, or by torch as on a GPU."""
    for kind in (Products, TorchProducts):
        monkeypatch.setattr(kind, "rows", 17)
        monkeypatch.setattr(kind, "columns", 5)
    monkeypatch.setattr(dedup, "PAIRS_AT_ONCE", 9)
    monkeypatch.setattr(nearest, "_ROWS_AT_ONCE", 4)
    if request.param == "torch":
        for module in (against, dedup, neighbors):
            monkeypatch.setattr(module, "products_for", lambda device, operations: TorchProducts("cpu"))
