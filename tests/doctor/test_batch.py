"""The checks that embed texts and run kernels, sound and broken."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from fastvec import Encoder, embed
from fastvec.doctor import batch, kernels
from fastvec.errors import ModelError
from fastvec_kernels import _switch
from fastvec_kernels._launch import kernels_on_cpu

CPU = torch.device("cpu")
OPS = "rms_norm, swiglu, pool, dropout, attention, rope, rope_attention"
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="replaces launches in the interpreter")


@pytest.fixture(autouse=True)
def no_op_is_switched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_switch, "_on_torch", {})
    monkeypatch.setattr(batch, "TIMED", 2)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels in Triton's interpreter, on few and short sequences."""
    monkeypatch.setattr(kernels, "LENGTHS", (1, 20))
    monkeypatch.setattr(kernels, "SHORT_LENGTHS", (1, 20))
    monkeypatch.setattr(kernels, "HEAD_SIZES", (32,))
    monkeypatch.setattr(kernels, "WIDTH", 64)
    with kernels_on_cpu():
        yield


def ignore(step: str) -> None: ...


def test_vectors_agree_with_transformers() -> None:
    result, detail = batch.check_vectors(ignore)
    assert result == "ok"
    assert detail.startswith("fastvec-mini in ")
    assert " from transformers in float32, allowed " in detail


def test_wrong_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = batch.reference

    def turned(encoder: Encoder) -> object:
        return expected(encoder)[:, ::-1]

    monkeypatch.setattr(batch, "reference", turned)
    result, detail = batch.check_vectors(ignore)
    assert result == "FAILED"
    assert detail.startswith("wrong vectors: fastvec-mini in ")
    assert detail.endswith(": do not use this machine, and report this")


def test_vectors_that_are_not_finite_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "reference", lambda _: np.full((len(batch.TEXTS), 256), np.nan, dtype=np.float32))
    assert batch.check_vectors(ignore)[0] == "FAILED"


def test_a_job_is_embedded_and_verified_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result, detail = batch.check_job(ignore)
    assert result == "ok"
    assert detail.startswith("200 rows from Parquet to Arrow in ")
    assert list(tmp_path.iterdir()) == []


def test_a_job_whose_output_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(inputs: object, output: Path, **options: object) -> object:
        report = embed(inputs, output, **options)  # type: ignore[arg-type]
        with output.open("r+b") as file:
            file.seek(output.stat().st_size // 2)
            file.write(b"\xff" * 16)
        return report

    monkeypatch.setattr(batch, "embed", damaged)
    result, detail = batch.check_job(ignore)
    assert result == "FAILED"
    assert "does not match its CRC32): check disk and memory" in detail


@interpreted
def test_kernels_that_are_right(small: None) -> None:
    steps: list[str] = []
    found = kernels.compare_kernels(steps.append, CPU, torch.float32, fp8=False)
    assert found == ("ok", f"{OPS} agree with their references in float32")
    assert list(dict.fromkeys(steps)) == OPS.split(", ")


@interpreted
def test_kernels_that_disagree_are_replaced(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("PTXAS error: unknown target\nmore")

    monkeypatch.setattr(import_module("fastvec_kernels.attention.op"), "launch", lambda *_, **__: None)
    monkeypatch.setattr(import_module("fastvec_kernels.swiglu"), "launch", refused)
    result, detail = kernels.compare_kernels(ignore, CPU, torch.float32, fp8=False)
    slow = "runs on PyTorch's operations, which is slower"
    right = OPS.replace("swiglu, ", "").replace("attention, rope,", "rope,")
    assert (result, detail) == (
        "note",
        f"attention {slow}: error nan, allowed 2.00e-05; swiglu {slow}: RuntimeError: PTXAS error: unknown target; "
        f"{right} agree with their references in float32",
    )


@interpreted
def test_a_kernel_that_stops_the_gpu_is_named(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(import_module("fastvec_kernels.rms_norm"), "launch", crash)
    monkeypatch.setattr(kernels, "swiglu", crash)  # all that follows fails too
    with pytest.raises(ModelError, match="a kernel of rms_norm stopped the GPU"):
        kernels.compare_kernels(ignore, CPU, torch.float32, fp8=False)


def test_without_a_gpu_no_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.check_kernels(ignore) == ("ok", "none: without a GPU, PyTorch's operations take their place")
