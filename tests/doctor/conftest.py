"""A simulated machine for `fastvec doctor`: its packages, memory, folders, processor and GPUs."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from fastvec.doctor import devices, environment, versions

GB = 10**9
CPUINFO = "model name\t: AMD EPYC 9554\nflags\t\t: fpu avx2 avx512f avx512_bf16\n"
REQUIRES = [
    "numpy>=2.0",
    "torch>=2.10",
    "transformers>=5.17",
    'triton>=3.3; platform_system == "Linux"',
    's3fs>=2026.9; extra == "s3"',
    'pytest>=8.4; extra == "dev"',
]
TORCH_REQUIRES = ["filelock", 'triton==3.6.0; platform_system == "Linux"', 'optree>=0.13; extra == "optree"']


@dataclass
class Gpu:
    name: str = "NVIDIA H100 80GB HBM3"
    capability: tuple[int, int] = (9, 0)
    free: int = 84 * GB
    total: int = 85 * GB


@dataclass
class Machine:
    """What the machine says of itself; a test changes it before it asks the doctor."""

    home: Path
    packages: dict[str, list[str]] = field(
        default_factory=lambda: {
            "numpy": ["2.4.0"],
            "torch": ["2.12.0+cu128"],
            "transformers": ["5.20.0"],
            "triton": ["3.6.0"],
        }
    )
    python: str = "3.12.3"
    free_memory: int = 60 * GB
    free_disk: int = 500 * GB
    threads: int = 16
    cores: int = 16
    quota: float | None = None
    cuda: str | None = "12.8"  # that torch is built for
    driver_cuda: int = 12080  # as cuDriverGetVersion says it; 0 without its library
    driver: str | None = "570.86.15"  # None: no NVIDIA GPU
    gpus: Sequence[Gpu] = (Gpu(),)
    usable: bool = True  # by torch
    compiled_for: Sequence[str] = ("sm_80", "sm_90", "compute_120")

    def copies(self, *, name: str) -> list[SimpleNamespace]:
        numbered = enumerate(self.packages.get(name, []))
        return [
            SimpleNamespace(version=version, locate_file=lambda _, at=at: f"/site{at}", requires=TORCH_REQUIRES)
            for at, version in numbered
        ]

    def distribution(self, name: str) -> SimpleNamespace:
        if not self.packages.get(name):
            raise metadata.PackageNotFoundError(name)
        return self.copies(name=name)[0]

    def library(self, name: str) -> Any:
        """The library of NVIDIA's driver."""
        if name != "libcuda.so.1" or not self.driver_cuda:
            raise OSError(f"{name}: cannot open shared object file")

        def version(pointer: Any) -> int:
            pointer._obj.value = self.driver_cuda
            return 0

        return SimpleNamespace(cuDriverGetVersion=version)

    def nvidia_smi(self, command: Sequence[str], **_: Any) -> Any:
        if self.driver is None:
            raise FileNotFoundError(command[0])
        lines = [f"{gpu.name}, {self.driver}" for gpu in self.gpus]
        return SimpleNamespace(stdout="\n".join(lines), returncode=0)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with 16 cores and an H100 on which all is well, and whose user is at home in `tmp_path`."""
    machine = Machine(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TRITON_CACHE_DIR", "TRITON_HOME", "CC", "FASTVEC_SPOOL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    _packages(machine, monkeypatch)
    monkeypatch.setattr(environment, "available_bytes", lambda: machine.free_memory)
    monkeypatch.setattr(environment, "memory_bytes", lambda: 64 * GB)
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / ".cache/huggingface/hub"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=machine.free_disk))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    _devices(machine, tmp_path, monkeypatch)
    return machine


def _packages(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: Mapping[str, str] = {"Requires-Python": ">=3.11"}
    fake = SimpleNamespace(
        metadata=lambda _: bounds,
        requires=lambda _: REQUIRES,
        distributions=machine.copies,
        distribution=machine.distribution,
        version=lambda name: machine.distribution(name).version,
    )
    monkeypatch.setattr(versions, "metadata", fake)
    monkeypatch.setattr(devices, "metadata", fake)
    here = SimpleNamespace(python_version=lambda: machine.python, platform=lambda: "Linux-6.8.0-x86_64-with-glibc2.39")
    monkeypatch.setattr(versions, "platform", here)


def _devices(machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "cpuinfo").write_text(CPUINFO)
    (folder / "dev").mkdir()
    (folder / "dev/nvidia0").touch()
    monkeypatch.setattr(devices, "CPUINFO", folder / "cpuinfo")
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", folder / "missing")
    monkeypatch.setattr(devices, "DEVICES", folder / "dev")
    monkeypatch.setattr(devices, "core_count", lambda: machine.cores)
    monkeypatch.setattr(devices, "core_quota", lambda: machine.quota)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("fastvec.settings.resolve_dtype", lambda _: "bfloat16")
    monkeypatch.setattr(subprocess, "run", machine.nvidia_smi)
    monkeypatch.setattr(torch, "__version__", machine.packages["torch"][0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: machine.threads)
    monkeypatch.setattr("ctypes.CDLL", machine.library)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(devices, "_architecture", lambda number: _row(machine.gpus[number]))
    cuda = {
        "is_available": lambda: machine.usable,
        "device_count": lambda: len(machine.gpus),
        "get_device_properties": lambda number: _properties(machine.gpus[number]),
        "mem_get_info": lambda number: (machine.gpus[number].free, machine.gpus[number].total),
        "get_arch_list": lambda: list(machine.compiled_for),
    }
    for name, function in cuda.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(torch.version, "cuda", machine.cuda)


def _row(gpu: Gpu) -> str | None:
    return {8: "sm_80", 9: "sm_90", 10: "sm_100", 12: "sm_120"}.get(gpu.capability[0])


def _properties(gpu: Gpu) -> SimpleNamespace:
    return SimpleNamespace(name=gpu.name, major=gpu.capability[0], minor=gpu.capability[1])
