"""The whole report, of machines that are simulated."""

import errno
import json
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from fastvec.doctor import diagnosis
from fastvec.doctor.diagnosis import ISOLATED, checked, diagnose
from fastvec.doctor.environment import check_open_files
from fastvec.doctor.report import Check, Outcome, anonymous
from tests.doctor.conftest import GB, Machine

# what loads a model is not simulated
SIMULATED = {name: target for name, target in ISOLATED.items() if name not in ("kernels", "vectors", "job")}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the checks where the machine is simulated."""

    def run(targets: Mapping[str, str], **_: Any) -> Iterator[Check]:
        return (checked(name, target, lambda step: None) for name, target in targets.items())

    monkeypatch.setattr(diagnosis, "run_isolated", run)


def report(machine: Machine, **options: Any) -> str:
    found = diagnose(machine.home, isolated=SIMULATED, **options)
    assert found.return_code == ("FAILED" in str(found))
    assert json.loads(json.dumps(found.to_json()))["passed"] == (found.return_code == 0)
    return str(found)


def test_a_sound_machine(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastvec.doctor.compiler.compiler", lambda **_: ("ok", "/usr/bin/gcc"))
    assert report(machine) == (
        """\
ok      python      3.12.3 on Linux-6.8.0-x86_64-with-glibc2.39
ok      packages    torch 2.12.0+cu128, triton 3.6.0, transformers 5.20.0, numpy 2.4.0
ok      extras      none
ok      memory      60.0 of 64.0 GB free for this process
ok      open files  1,024 at most
ok      hub         models are downloaded when they are first used, which is not tried here; a token
ok      output      ~, 500.0 GB free; written, synced and locked
ok      temporary   ~/tmp, 500.0 GB free; written, synced and locked
ok      spool       ~/.cache/fastvec/spool, 500.0 GB free; written, synced and locked
ok      hub cache   ~/.cache/huggingface/hub, 500.0 GB free; written, synced and locked
ok      torch       2.12.0+cu128, built for CUDA 12.8
ok      processor   AMD EPYC 9554, 16 cores, 16 threads; avx2 avx512f avx512_bf16; on a CPU, dtype auto is bfloat16
ok      gpu         0: NVIDIA H100 80GB HBM3 (sm_90), 84.0 of 85.0 GB free; NVIDIA H100 80GB HBM3 with driver 570.86.15
                    supports CUDA 12.8
ok      triton      /usr/bin/gcc
fastvec 0.1.0: all 14 checks passed"""
    )


def test_a_machine_on_which_much_is_wrong(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.packages |= {"torch": ["2.9.1"], "triton": ["3.9.0"]}
    machine.usable, machine.driver, machine.driver_cuda = False, "470.82.01", 11040
    machine.free_memory, machine.quota = 1 * GB, 4.0
    monkeypatch.setattr("resource.getrlimit", lambda _: (32, 512))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch, "__version__", "2.9.1")

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a bug\nof a library")

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr("fastvec.settings.resolve_dtype", broken)
    assert report(machine) == (
        """\
ok      python      3.12.3 on Linux-6.8.0-x86_64-with-glibc2.39
FAILED  packages    torch 2.9.1 was found, expected >=2.10: pip install 'torch>=2.10'; triton 3.9.0 was found, and torch
                    2.9.1 asks for ==3.6.0: pip install 'triton==3.6.0'; torch 2.9.1, triton 3.9.0, transformers 5.20.0,
                    numpy 2.4.0
ok      extras      none
note    memory      a job takes about 1 GB beside the model's weights, expected 2.1 GB: end other programs, or raise the
                    container's limit; 1.0 of 64.0 GB free for this process
note    open files  expected 64: ulimit -n 512; 32 at most
ok      hub         offline (HF_HUB_OFFLINE): models come from its cache; a token
FAILED  output      ~: no space left: make room, or give another folder with -o
FAILED  temporary   ~/tmp: no space left: make room, or set TMPDIR to a folder that can be written
note    spool       ~: no space left: make room, or set FASTVEC_SPOOL to a folder that can be written, for inputs and
                    outputs in object stores
note    hub cache   ~: no space left: make room, or set HF_HUB_CACHE to a folder that can be written, to download models
ok      torch       2.9.1, built for CUDA 12.8
FAILED  processor   ZeroDivisionError: a bug of a library
FAILED  gpu         NVIDIA H100 80GB HBM3 with driver 470.82.01 supports CUDA 11.4, and torch is built for 12.8: update
                    the driver, or install a build of torch for CUDA 11
ok      triton      not needed: without a GPU, no kernels are compiled
fastvec 0.1.0: 5 of 14 checks failed, 4 with a note"""
    )


def test_without_a_package_that_the_doctor_needs_the_other_checks_run(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "fastvec.doctor.versions")
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    results = {check.name: (check.result, check.detail) for check in diagnose(machine.home, isolated={}).checks}
    problem = "ModuleNotFoundError: import of packaging.requirements halted; None in sys.modules"
    assert results["packages"] == ("FAILED", problem)
    assert results["output"][0] == "ok"


def test_the_report_names_no_user_and_no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setattr("platform.node", lambda: "node7")
    detail = "/home/ada/x /home/ada, /home/adam /data/ada/node7: ada.txt; /data/ada.txt"
    found = anonymous(Check(name="output", result="ok", detail=detail))
    assert found.detail == "~/x ~, /home/adam /data/USER/HOST: ada.txt; /data/ada.txt"


def test_the_value_of_a_token_is_not_shown(machine: Machine) -> None:
    found = diagnose(machine.home, isolated={})
    assert "a token" in str(found)
    assert "secret" not in str(found) + json.dumps(found.to_json())


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), ("ok", "no limit")),
        ((64, 64), ("ok", "64 at most")),
        ((32, resource.RLIM_INFINITY), ("note", "expected 64: ulimit -n 1024; 32 at most")),
        ((32, 48), ("note", "expected 64: let an administrator raise the limit of this user; 32 at most")),
    ],
)
def test_open_files(limits: tuple[int, int], expected: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: limits)
    assert check_open_files() == expected
