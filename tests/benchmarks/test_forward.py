"""The arithmetic and checks of `benchmarks.ceilings` and `benchmarks.forward`; real timings are not checked."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import ceilings, forward
from benchmarks.engines import implementations, race
from benchmarks.engines.device_timing import time_alone, time_in_a_row, time_op
from benchmarks.engines.engines import device
from benchmarks.engines.implementations import (
    FASTVEC,
    FP8,
    NAMES,
    TRANSFORMERS,
    Implementation,
    load_implementations,
    packed_batches,
    padded_batches,
)
from benchmarks.engines.random_decoder import DECODERS, fused_decoder, fused_vectors, random_model, random_texts
from fastvec.decoders.fused import FusedDecoder
from fastvec.texts.packing import Packed

TINY = DECODERS["tiny"]
LONGEST = 200
ROW = forward.Row(
    shape="tiny",
    implementation=FASTVEC,
    lengths="20",
    budget=256,
    dtype="bfloat16",
    texts=12,
    tokens=240,
    flops=3e9,
    ceiling=1e12,
    forwards=2,
    seconds=0.006,
    device_seconds=0.003,
    host_seconds=0.001,
    cosine=0.9999,
)


def loaded(names: Sequence[str], **given: Any) -> dict[str, Implementation | str]:
    settings: dict[str, Any] = {"positions": LONGEST, "dtype": "float32", "device": "cpu", **given}
    decoder = settings.pop("decoder", TINY)
    with torch.inference_mode():
        return load_implementations(decoder, names, **settings)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.99999), ("bfloat16", 0.99)])
def test_fastvec_and_transformers_agree_on_the_same_weights(family: Any, dtype: str, least: float) -> None:
    found = loaded((FASTVEC, TRANSFORMERS), decoder=replace(TINY, family=family), dtype=dtype)
    for one in found.values():
        assert isinstance(one, Implementation), one
        assert one.cosine > least
        assert one.weights == sum(x.nbytes for x in random_model_of(family, dtype).parameters())


def random_model_of(family: Any, dtype: str) -> Any:
    return random_model(replace(TINY, family=family), positions=LONGEST, dtype=dtype, device="cpu")


def test_vectors_come_in_the_same_order_from_packed_and_padded_batches() -> None:
    found = loaded((FASTVEC, TRANSFORMERS))
    texts = random_texts([5, 90, 1, 33, 5, 90, 7], TINY.vocabulary)
    with torch.inference_mode():
        vectors = [one.vectors(texts, 100) for one in found.values() if isinstance(one, Implementation)]
    torch.testing.assert_close(vectors[0], vectors[1], rtol=0, atol=1e-5)
    apart = vectors[0] @ vectors[0].T - torch.eye(len(texts))
    assert apart.max() < 0.99  # no two texts have the same vector, so the order shows


def test_weights_are_random_and_drawn_the_same_every_time() -> None:
    one, two = (random_model_of("qwen3", "float32").state_dict() for _ in range(2))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    matrix, norm = one["layers.0.mlp.down_proj.weight"], one["layers.1.self_attn.q_norm.weight"]
    assert 0.015 < matrix.std() < 0.025
    assert norm.std() > 0.03


def test_wrong_vectors_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(fused: FusedDecoder, packed: Packed) -> torch.Tensor:
        return fused_vectors(fused, packed).flip(1)

    monkeypatch.setattr(implementations, "fused_vectors", wrong)
    found = loaded((FASTVEC, TRANSFORMERS))
    assert str(found[FASTVEC]).startswith("FAILED: cosine ")
    assert isinstance(found[TRANSFORMERS], Implementation)


def test_an_implementation_that_raises_is_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise ValueError("no such instruction\nmore")

    monkeypatch.setattr(implementations, "fused_decoder", refused)
    assert loaded((FASTVEC,)) == {FASTVEC: "FAILED: ValueError: no such instruction"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")
def test_fp8_needs_a_gpu_and_is_compared_with_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded((FP8,)) == {FP8: "needs a GPU with fp8"}

    def scaled_mm(
        a: torch.Tensor, b: torch.Tensor, *, scale_a: torch.Tensor, scale_b: torch.Tensor, **_: object
    ) -> torch.Tensor:
        return (a.float() @ b.float() * scale_a * scale_b).bfloat16()

    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    monkeypatch.setattr(implementations, "runs_fp8", lambda _: True)
    found = loaded((FP8,))[FP8]
    assert isinstance(found, Implementation)
    assert 0.9 < found.cosine < 0.99999  # near, and not the same


def test_padded_batches_stay_within_the_budget() -> None:
    texts = random_texts([30, 300, 10, 100, 100, 20], TINY.vocabulary)
    batches = padded_batches(texts, 200, device="cpu")
    assert [tuple(batch.ids.shape) for batch in batches] == [(1, 300), (2, 100), (3, 30)]
    assert batches[2].mask.sum(dim=1).tolist() == [30, 20, 10]
    assert np.array_equal(batches[2].ids[1, :20].numpy(), texts[5])
    packed = [batch.lengths for batch in packed_batches(texts, 200, device="cpu")]
    assert packed == [(300,), (100,), (100, 30, 20, 10)]  # as even as the same number of batches allows


def test_texts_of_one_length_are_whole_and_a_pattern_has_the_same_with_every_budget() -> None:
    assert forward.lengths_of("20", 256, 9999) == (20,) * 12
    assert forward.lengths_of("512", 256, 9999) == (512,)
    assert forward.lengths_of("long-tail", 256, 1024) == forward.lengths_of("long-tail", 1024, 1024)
    assert sum(forward.lengths_of("long-tail", 256, 1024)) == 1024


def test_useful_flops_are_those_of_the_products_and_of_attention() -> None:
    layer = 2 * (64 * 256 + 128 * 64 + 64 * 384 + 192 * 64)  # qkv, o, gate_up and down, two FLOPs for each weight
    scores = 2 * 2 * (10 * 10 + 30 * 30) * 4 * 32  # QKᵀ and PV of two texts, 4 heads of 32
    assert TINY.sizes.flops([10, 30]) == 2 * (40 * layer + scores)
    widths = ceilings.layer_products(TINY.sizes)
    assert widths == {"qkv": (64, 256), "o": (128, 64), "gate_up": (64, 384), "down": (192, 64)}
    for decoder in DECODERS.values():
        weights = sum(inner * outer for inner, outer in ceilings.layer_products(decoder.sizes).values())
        assert weights * decoder.sizes.layers == decoder.sizes.parameters


def test_rates_of_a_forward_are_those_of_passes_that_follow_each_other() -> None:
    assert ROW.figures == pytest.approx({"tokens_per_s": 40_000, "us_per_token": 25, "tflops": 0.5, "share": 0.5})
    assert "40,000    25.000    3.00 ms    1.00 ms    0.500       50%" in str(ROW)
    assert "on PyTorch's operations: rope, swiglu" in str(replace(ROW, torch_ops=("rope", "swiglu")))
    assert replace(ROW, seconds=None).figures == {}


def test_a_layer_is_the_sum_of_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "linear_seconds", lambda *_: 1e-3)
    *products, layer = ceilings.layer_rows("tiny", 100, "bfloat16")
    assert [row.name for row in products] == ["tiny qkv", "tiny o", "tiny gate_up", "tiny down"]
    assert layer.figures == pytest.approx(
        {
            "tflops": sum(row.flops for row in products) / 4e-3 / 1e12,
            "tb_per_s": None,
            "us_per_token": 40,
            "us_per_token_all_layers": 80,
        }
    )


def test_a_product_that_is_refused_is_a_row_without_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(_tokens: int, inner: int, _outer: int, _dtype: str) -> float:
        if inner == 192:
            raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")
        if inner == 128:
            raise torch.OutOfMemoryError
        return 1e-3

    monkeypatch.setattr(ceilings, "linear_seconds", seconds)
    found = [row.status for row in ceilings.layer_rows("tiny", 100, "bfloat16")]
    assert found == ["ok", "out of memory", "ok", "FAILED: RuntimeError: CUBLAS_STATUS_NOT_SUPPORTED"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")
def test_fp8_products_are_called_as_the_quantized_path_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled_mm(a: torch.Tensor, b: torch.Tensor, **given: Any) -> torch.Tensor:
        assert (a.shape, b.shape, b.stride()) == ((8, 32), (32, 16), (1, 32))
        assert (given["scale_a"].shape, given["scale_b"].shape) == ((8, 1), (1, 16))
        assert given["out_dtype"] == torch.bfloat16
        assert given["use_fast_accum"]
        return a.float() @ b.float()

    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    assert ceilings.product_row("p", 8, 32, 16, "fp8").seconds


class Event:
    """A fake CUDA event, recorded two seconds after the one before."""

    recorded = 0

    def __init__(self, enable_timing: bool) -> None:
        self.second = 0

    def record(self) -> None:
        Event.recorded += 1
        self.second = 2 * Event.recorded

    def elapsed_time(self, later: "Event") -> float:
        return 1e3 * (later.second - self.second)


def test_a_forward_is_timed_alone_behind_a_sleep_and_then_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _: done.append("sleep"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    on_device, on_host = time_alone([lambda: done.append("a"), lambda: done.append("b")], seconds=0)
    assert done == [*["wait", "a", "wait", "sleep", "a", "wait"] * 3, *["wait", "b", "wait", "sleep", "b", "wait"] * 3]
    assert on_device == 2
    assert 0 < on_host < 1
    done.clear()
    assert time_in_a_row(lambda: done.append("a"), once=0.1, seconds=0.35) < 1
    assert done == ["wait", "a", "a", "a", "wait"]


def test_a_cpu_has_one_time_the_shortest() -> None:
    if not torch.cuda.is_available():
        on_device, on_host = time_alone([lambda: sum(range(1000)), lambda: None], seconds=0)
        assert 0 < on_device == on_host
        assert time_op(lambda x: x + 1, [1, 2], seconds=0) > 0


def run(command: click.Command, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def no_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measurement of the matrix rate, which takes a second."""
    monkeypatch.setattr(race, "matrix_rate", lambda _: 1e12)


def test_ceilings_runs_to_the_end(tmp_path: Path) -> None:
    output = run(ceilings.main, "--shape", "tiny", "--append", str(tmp_path / "rows"))
    rows = rows_in(tmp_path / "rows")
    assert [row["name"] for row in rows if row["dtype"] == "bfloat16"][1:6] == [
        *("tiny qkv", "tiny o", "tiny gate_up", "tiny down"),
        "tiny layer",
    ]
    assert all(row["benchmark"] == "ceilings" and row["status"] == "ok" for row in rows)
    assert all(math.isfinite(row["tb_per_s"] or row["tflops"]) for row in rows)
    assert all(row["name"] in output for row in rows)
    assert "skipped" in run(ceilings.main, "--shape", "tiny", "--seconds", "0")


@pytest.mark.usefixtures("no_ceiling")
def test_forward_runs_to_the_end(tmp_path: Path) -> None:
    arguments = ("--shape", "tiny", "--lengths", "20", "--lengths", "short", "--budgets", "40 64")
    run(forward.main, *arguments, "--append", str(tmp_path / "rows"))
    rows = rows_in(tmp_path / "rows")
    cases = [(row["lengths"], row["budget"], row["implementation"]) for row in rows]
    assert cases == [(one, budget, name) for budget in (40, 64) for one in ("20", "short") for name in NAMES]
    timed = [row for row in rows if row["status"] == "ok"]
    assert {row["implementation"] for row in timed} >= {FASTVEC, TRANSFORMERS}
    for row in timed:
        lengths = forward.lengths_of(row["lengths"], row["budget"], 64)
        assert (row["tokens"], row["flops"]) == (sum(lengths), TINY.sizes.flops(lengths))
        assert row["us_per_token"] * row["tokens_per_s"] == pytest.approx(1e6)
        assert min(row["device_seconds"], row["host_seconds"]) > 0
        assert (row["peak_memory"] is None) == (device() == "cpu")
    assert "skipped" in run(forward.main, *arguments, "--seconds", "0", code=1)


@pytest.mark.usefixtures("no_ceiling")
def test_vectors_that_are_not_finite_fail_and_memory_that_runs_out_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(status: str) -> Any:
        def vectors(_batch: object) -> torch.Tensor:
            if status == "out of memory":
                raise torch.OutOfMemoryError
            return torch.full((2, 64), torch.nan)

        one = Implementation(batches=lambda texts, _: [texts], forward=vectors, weights=0)
        return lambda *_, **__: {FASTVEC: one}

    arguments = ("--shape", "tiny", "--lengths", "20", "--budgets", "64", "--only", FASTVEC)
    for status, code in (("FAILED: vectors are not finite", 1), ("out of memory", 0)):
        monkeypatch.setattr(forward, "load_implementations", broken(status))
        assert status in run(forward.main, *arguments, code=code)


def test_lengths_and_budgets_that_make_no_sense_are_refused() -> None:
    assert "2k is not one of: a positive number, short" in run(forward.main, "--lengths", "20 2k", code=2)
    assert "0 is not one of: a positive number" in run(forward.main, "--budgets", "0", code=2)


def test_the_fused_decoder_shares_the_weights_of_the_model() -> None:
    model = random_model_of("qwen3", "float32")
    fused = fused_decoder(TINY, model, positions=LONGEST, device="cpu")
    fused.norm.weight.zero_()
    assert not model.norm.weight.any()
