from collections.abc import Iterator

import pytest
import torch

from fastvec.system.float32 import full_float32

matmul = torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def nothing_stays_chosen() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("chosen", ["highest", "high", "medium"])
def test_products_are_in_full_float32_and_the_choice_of_other_code_stays(chosen: str) -> None:
    torch.set_float32_matmul_precision(chosen)
    before = matmul.fp32_precision
    with full_float32():
        assert (torch.get_float32_matmul_precision(), matmul.fp32_precision == "tf32") == ("highest", False)
    assert (torch.get_float32_matmul_precision(), matmul.fp32_precision) == (chosen, before)


def test_a_choice_by_the_newer_setting_stays_too() -> None:
    matmul.fp32_precision = "tf32"
    with full_float32():
        assert (torch.get_float32_matmul_precision(), matmul.fp32_precision) == ("highest", "ieee")
    assert matmul.fp32_precision == "tf32"
