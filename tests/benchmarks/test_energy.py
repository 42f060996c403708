"""Reading the energy counters of CPU and GPU drivers; real consumption is not checked."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.engines.energy import counters, used


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


def package(folder: Path, name: str, energy: int, largest: int = 1_000_000_000) -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{energy}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{largest}\n")


def test_packages_are_summed_and_their_parts_are_not(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
        package(tmp_path, name, 5_000_000)
    before = counters(tmp_path)
    assert before == {"intel-rapl:0": (5.0, 1000.0), "intel-rapl:1": (5.0, 1000.0)}
    for name in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
        package(tmp_path, name, 7_500_000)
    assert used(before, counters(tmp_path)) == 5.0


def test_a_counter_that_began_again_goes_on(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 999_000_000)
    before = counters(tmp_path)
    package(tmp_path, "intel-rapl:0", 2_000_000)
    assert used(before, counters(tmp_path)) == pytest.approx(3)


def test_without_a_counter_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "intel-rapl:0").mkdir()
    assert counters(tmp_path) == {}
    assert used({}, {}) is None


def test_gpus_are_asked_where_there_is_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def energy(gpu: int) -> int:
        if gpu == 1:
            raise NVMLError
        return 12_000

    driver = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetTotalEnergyConsumption=energy,
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    found = counters(tmp_path)
    assert found == {"gpu 0": (12.0, float("inf"))}
    assert used({"gpu 0": (2.0, float("inf"))}, found) == 10.0
