"""The check of the kernels when a model is loaded, on kernels that run in Triton's interpreter."""

import logging
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvec.checkpoints.checkpoint import resolve
from fastvec.decoders.kernel_check import call_kernels, check_sequences, kernel_check
from fastvec.decoders.load import load_decoder
from fastvec.errors import ModelError, UsageError
from fastvec.texts.packing import Packed
from fastvec_kernels import _switch, rms_norm, torch_ops, use_torch_ops
from fastvec_kernels._launch import kernels_on_cpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="replaces launches in the interpreter")


@pytest.fixture(autouse=True)
def no_op_is_switched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_switch, "_on_torch", {})
    with torch.inference_mode():
        yield


def test_a_model_whose_attention_kernel_is_wrong_runs_on_torch_ops(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = load_decoder(resolve(tiny_llama), dtype=torch.float32, device="cpu", bidirectional=True, positions=64)
    packed = check_sequences((1, 20, 40), decoder.vocabulary, 30, "cpu")
    assert packed.lengths == (1, 20, 30)
    expected = decoder(packed)
    monkeypatch.setattr(import_module("fastvec_kernels.attention.op"), "launch", lambda *_, **__: None)
    with kernels_on_cpu(), caplog.at_level(logging.WARNING, "fastvec"):
        with kernel_check():
            checked = decoder(packed)
        found = decoder(packed)
    torch.testing.assert_close(checked, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch_ops().keys() == {"attention"}
    (record,) = caplog.records
    assert record.getMessage() == (
        "attention runs without its kernel, which failed the check: error nan, allowed 2.00e-05"
    )


def test_every_kernel_is_called() -> None:
    """A batch of short sequences alone takes another kernel for attention than one with a longer sequence."""
    batches: list[Packed] = []
    call_kernels(batches.append, 1000, 64, "cpu")
    assert batches == []  # there are no kernels
    call_kernels(batches.append, 1000, 2000, "meta")
    assert [max(packed.lengths) for packed in batches] == [1100, 128]


def test_what_replaces_a_kernel_is_called_again() -> None:
    batches: list[Packed] = []

    def run(packed: Packed) -> None:
        batches.append(packed)
        if len(batches) == 2:
            use_torch_ops({"rope_attention": "it failed"})

    call_kernels(run, 1000, 64, "meta")
    assert len(batches) == 4


def test_ops_are_named_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVEC_TORCH_OPS", "attention, rope")
    with kernel_check():
        pass
    assert dict(torch_ops()) == dict.fromkeys(("attention", "rope"), "named by FASTVEC_TORCH_OPS")


def test_an_unknown_op_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVEC_TORCH_OPS", "attention,softmax")
    with (
        pytest.raises(UsageError, match="FASTVEC_TORCH_OPS names softmax, which is no op: choose from"),
        kernel_check(),
    ):
        pass


def test_a_kernel_that_stops_the_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(import_module("fastvec_kernels.rms_norm"), "launch", crash)

    def load() -> None:
        with kernels_on_cpu(), kernel_check():
            rms_norm(torch.ones(2, 16), torch.ones(16), 1e-6)
            crash()  # all that follows fails too

    with pytest.raises(ModelError, match=r"a kernel of rms_norm stopped the GPU .*: set FASTVEC_TORCH_OPS=rms_norm to"):
        load()
    with pytest.raises(RuntimeError, match="no kernel's fault"), kernel_check():
        raise RuntimeError("no kernel's fault")
