import pytest
import torch

from fastvec.errors import UsageError
from fastvec.pairs.products import GPU_OPERATIONS, Products, TorchProducts, products_for


@pytest.mark.parametrize(
    ("device", "has_gpu", "operations", "kind"),
    [
        ("cpu", True, 10 * GPU_OPERATIONS, Products),
        ("auto", True, 10 * GPU_OPERATIONS, TorchProducts),
        ("auto", True, GPU_OPERATIONS / 10, Products),
        ("auto", False, 10 * GPU_OPERATIONS, Products),
        ("cuda", True, 1, TorchProducts),
    ],
)
def test_a_gpu_is_for_many_rows(
    device: str, has_gpu: bool, operations: float, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert type(products_for(device, operations)) is kind


def test_a_device_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="torch finds no GPU: choose cpu"):
        products_for("cuda", 1)
    with pytest.raises(UsageError, match="device 'tpu' is not known: choose auto, cpu or cuda"):
        products_for("tpu", 1)
