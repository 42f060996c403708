import os
from pathlib import Path

import pytest

from fastvec.system import limits
from fastvec.system.limits import available_bytes, core_count, core_quota, memory_bytes


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of control groups of a process in /job/step, and a machine with 8 GB free."""
    monkeypatch.setattr(limits, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(limits, "MEMINFO", tmp_path / "meminfo")
    (tmp_path / "own").write_text("5:memory:/job/step\n4:cpu,cpuacct:/job/step\n1:name=systemd:/other\n0::/job/step\n")
    (tmp_path / "meminfo").write_text("MemTotal:  16000000 kB\nMemAvailable:  8000000 kB\n")
    return tmp_path / "cgroup"


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_without_a_limit_all_of_the_machine_is_there(groups: Path) -> None:
    write(groups / "job/step", memory__max="max", memory__current="5", cpu__max="max 100000")
    assert memory_bytes() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available_bytes() == 8_192_000_000
    assert core_quota() is None
    assert core_count() == len(os.sched_getaffinity(0))


def test_limits_of_a_group_and_of_those_above_it(groups: Path) -> None:
    write(groups / "job/step", memory__max="max", memory__current="1000000", cpu__max="150000 100000")
    stat = "active_file 5000\ninactive_file 300000"
    write(groups / "job", memory__max="4000000", memory__current="3000000", memory__stat=stat, cpu__max="400000 100000")
    assert memory_bytes() == 4_000_000
    assert available_bytes() == 4_000_000 - 3_000_000 + 300_000
    assert core_quota() == 1.5


def test_the_first_version_of_control_groups(groups: Path) -> None:
    unlimited = str(2**63 - 4096)
    write(groups / "memory", memory__limit_in_bytes="1000000", memory__usage_in_bytes="400000")
    write(groups / "memory", memory__stat="total_inactive_file 100000")
    write(groups / "memory/job", memory__limit_in_bytes=unlimited, memory__usage_in_bytes="400000")
    write(groups / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    write(groups / "cpu/job", cpu__cfs_quota_us="250000", cpu__cfs_period_us="100000")
    assert memory_bytes() == 1_000_000
    assert available_bytes() == 700_000
    assert core_quota() == 2.5


def test_a_system_without_control_groups(groups: Path) -> None:
    limits.OWN_CGROUPS.unlink()
    limits.MEMINFO.unlink()
    assert available_bytes() is None
    assert core_quota() is None
