"""Processors and GPUs of simulated machines."""

import pytest
import torch

from fastvec.doctor import compiler, devices
from fastvec.doctor.devices import check_gpus, check_processor, check_torch
from tests.doctor.conftest import GB, Gpu, Machine

H100 = "0: NVIDIA H100 80GB HBM3 (sm_90), 84.0 of 85.0 GB free"
DRIVER = "NVIDIA H100 80GB HBM3 with driver 570.86.15"
MEANT = "set CUDA_VISIBLE_DEVICES= to use the CPU"
PROCESSOR = "AMD EPYC 9554, 16 cores, 16 threads; avx2 avx512f avx512_bf16; on a CPU, dtype auto is bfloat16"


def test_a_sound_machine(machine: Machine) -> None:
    assert check_torch(None) == ("ok", "2.12.0+cu128, built for CUDA 12.8")
    assert check_processor(None) == ("ok", PROCESSOR)
    assert check_gpus(None) == ("ok", f"{H100}; {DRIVER} supports CUDA 12.8")


def test_another_torch_is_imported_than_is_installed(machine: Machine) -> None:
    machine.packages["torch"] = ["2.12.0"]  # the metadata of PyPI's wheels
    assert check_torch(None)[0] == "ok"
    machine.packages["torch"] = ["2.11.0"]
    problem = "the installed torch is 2.11.0: look for another one on PYTHONPATH"
    assert check_torch(None) == ("note", f"{problem}; 2.12.0+cu128, built for CUDA 12.8")


def test_more_threads_than_a_container_has_cores(machine: Machine) -> None:
    machine.quota = 1.5
    result, detail = check_processor(None)
    assert result == "note"
    assert detail.startswith(
        "torch starts 16 threads for 2 cores, which is slow: set OMP_NUM_THREADS=2; "
        "AMD EPYC 9554, 16 cores and the time of 1.5, 16 threads"
    )


def test_few_threads_by_a_variable(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.threads = 4
    assert check_processor(None)[0] == "ok"  # torch itself chose so many
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    problem = "OMP_NUM_THREADS leaves 16 cores to 4 threads: unset it, or set it to 16"
    assert check_processor(None)[1].partition("; ")[0] == problem


def test_a_processor_without_avx2(machine: Machine) -> None:
    (machine.home / "cpuinfo").write_text("")
    assert check_processor(None)[0] == "ok"  # nothing is known
    (machine.home / "cpuinfo").write_text("model name : old\nflags : sse4_2 f16c\n")
    assert check_processor(None)[1].startswith("without AVX2, a forward takes several times as long")


def test_a_build_without_cuda_on_a_machine_with_a_gpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.usable = False
    monkeypatch.setattr(torch.version, "cuda", None)
    problem = f"{DRIVER} is here, and torch is built without CUDA"
    remedy = f"install a build of torch for CUDA with the selector on pytorch.org, or {MEANT}"
    assert check_gpus(None) == ("FAILED", f"{problem}: {remedy}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert check_gpus(None) == ("ok", "none: hidden by CUDA_VISIBLE_DEVICES")


def test_an_old_driver(machine: Machine) -> None:
    machine.usable, machine.driver, machine.driver_cuda = False, "470.82.01", 11040
    problem = "NVIDIA H100 80GB HBM3 with driver 470.82.01 supports CUDA 11.4, and torch is built for 12.8"
    remedy = "update the driver, or install a build of torch for CUDA 11"
    assert check_gpus(None) == ("FAILED", f"{problem}: {remedy}")


def test_a_container_without_the_devices(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.usable, machine.driver, machine.driver_cuda = False, None, 0
    (machine.home / "dev/nvidia0").unlink()
    (machine.home / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Fri\n")
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", machine.home / "version")
    monkeypatch.setattr(devices, "NVIDIA_GPUS", machine.home / "gpus")
    problem = "an NVIDIA GPU with driver 570.86.15 is here, but no device file /dev/nvidia0"
    remedy = "give the container its GPUs (docker run --gpus all), or the job of the scheduler"
    assert check_gpus(None) == ("FAILED", f"{problem}: {remedy}; or {MEANT}")
    (machine.home / "gpus").mkdir()  # the module is loaded, but there is no GPU
    assert check_gpus(None)[0] == "ok"


def test_what_torch_says_of_a_gpu_that_it_cannot_use(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> bool:
        import warnings

        warnings.warn("CUDA initialization: Unexpected error from\ncudaGetDeviceCount()", stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    why = "CUDA initialization: Unexpected error from cudaGetDeviceCount()"
    assert check_gpus(None) == (
        "FAILED",
        f"{DRIVER} is here, and torch cannot use it ({why}): restart it, or {MEANT}",
    )


def test_no_gpu(machine: Machine) -> None:
    machine.usable, machine.driver = False, None
    assert check_gpus(None) == ("ok", "none: the CPU computes, by PyTorch's operations")


def test_a_gpu_that_torch_has_no_code_for_and_one_that_is_taken(machine: Machine) -> None:
    old = Gpu(name="Tesla P40", capability=(6, 1), free=24 * GB, total=25 * GB)
    taken = Gpu(free=5 * GB)
    machine.gpus = (old, taken)
    result, detail = check_gpus(None)
    assert result == "FAILED"
    assert detail.split("; ")[:3] == [
        "0 has compute capability 6.1, and torch is built for sm_80 sm_90 compute_120: install another build, "
        f"or {MEANT}",
        "0 runs on PyTorch's operations: the kernels are for sm_80 and newer, and gfx942",
        "other processes hold 80.0 GB of 1: end them (nvidia-smi)",
    ]


@pytest.mark.parametrize(
    ("capability", "code"),
    [
        ((8, 0), True),
        ((8, 9), True),
        ((9, 0), True),
        ((12, 0), True),
        ((12, 1), True),
        ((7, 5), False),
        ((10, 0), False),
    ],
)
def test_code_for_a_gpu_is_of_its_generation_or_to_be_compiled(
    machine: Machine, capability: tuple[int, int], code: bool
) -> None:
    assert devices._has_code(capability) is code


def test_what_triton_needs(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    tools: dict[str, str] = {"gcc": "/usr/bin/gcc"}
    monkeypatch.setattr("shutil.which", tools.get)
    ptxas, include = machine.home / "ptxas", machine.home / "include"
    ptxas.touch(mode=0o755)
    include.mkdir()
    (include / "Python.h").touch()
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(ptxas))
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(include)})
    cache = f"{machine.home}/.triton/cache, 500.0 GB free; written, synced and locked"
    assert compiler.check_compiler(None) == ("ok", f"/usr/bin/gcc; compiled kernels in {cache}")

    ptxas.unlink()
    (include / "Python.h").unlink()
    monkeypatch.setenv("CC", "icc")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/proc/none")
    result, detail = compiler.check_compiler(None)
    assert result == "note"
    assert [problem.partition(":")[0] for problem in detail.split("is slower; ")] == [
        "CC names icc, which is missing",
        f"{include}/Python.h is missing",
        f"{ptxas} cannot be run",
        "/proc",
    ]


def test_without_a_gpu_no_compiler_is_needed(machine: Machine) -> None:
    machine.usable = False
    assert compiler.check_compiler(None) == ("ok", "not needed: without a GPU, no kernels are compiled")
