"""What a CPU computes by: that every choice gives the same vectors, and that a measurement decides as it should."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastvec.decoders import cpu_choices
from fastvec.decoders.cpu_choices import (
    KINDS,
    CpuChoices,
    OnednnLinear,
    PackedLinear,
    Products,
    bfloat16_is_faster,
    faster,
    has_onednn,
)
from fastvec.decoders.fused import FusedDecoder, Linear
from fastvec.decoders.quantized import int8_bits
from fastvec.encoder import Encoder
from fastvec.forward import Forward
from fastvec.texts.packing import Packed
from fastvec_kernels import Activation, AttentionPlan
from fastvec_kernels.attention.plan import Route, Routes
from tests.helpers.tiny import SENTENCES

TEXTS = [*SENTENCES, SENTENCES[0] + SENTENCES[1], SENTENCES[2] * 3]
needs_onednn = pytest.mark.skipif(not has_onednn(torch.float32), reason="this torch has no oneDNN")
DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if has_onednn(dtype)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [OnednnLinear, PackedLinear])
@pytest.mark.parametrize("rows", [1, 70])
def test_onednn_computes_what_linear_does(kind: type[Linear], dtype: torch.dtype, rows: int) -> None:
    weight, bias = (torch.randn(size).to(dtype) / 4 for size in ((64, 48), (64,)))
    x, residual = torch.randn(rows, 48).to(dtype), torch.randn(rows, 64).to(dtype)
    exact = F.linear(x.double(), weight.double())
    with torch.inference_mode():
        near(kind(weight, None).product(x), exact)
        near(kind(weight, bias)(x), exact + bias)
        total = residual.clone()
        kind(weight, None).add_product(total, x)
    near(total, exact + residual)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [OnednnLinear, PackedLinear])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("biased", [False, True])
def test_onednn_computes_gated_units(
    kind: type[Linear], dtype: torch.dtype, activation: Activation, biased: bool
) -> None:
    weight, x = torch.randn(128, 48).to(dtype) / 4, torch.randn(33, 48).to(dtype)
    bias = torch.randn(128).to(dtype) if biased else None
    gate, up = F.linear(x.double(), weight.double(), None if bias is None else bias.double()).chunk(2, dim=1)
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": lambda g: F.gelu(g, approximate="tanh"),
    }
    with torch.inference_mode():
        near(kind(weight, bias).gated(x, activation), functions[activation](gate) * up)


def near(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Each result was rounded at most three times: two products and their product, or a product and a sum.

    Accurate to 1e-5 in float32, as oneDNN approximates erf and exp by polynomials.
    """
    error = (found.double() - exact).norm() / exact.norm()
    assert error <= max(3 * torch.finfo(found.dtype).eps / 2, 1e-5)


@pytest.mark.parametrize("error", [AttributeError, RuntimeError])
def test_a_torch_without_onednn_has_none(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise error("not built")

    monkeypatch.setattr(cpu_choices, "_onednn", refuse)
    assert not has_onednn.__wrapped__(torch.float32)


@pytest.mark.parametrize(
    ("message", "is_memory"),
    [
        ("could not create a primitive", True),
        ("could not create a memory object", True),
        ("could not create a primitive descriptor for an inner product", False),
    ],
)
def test_too_little_memory_is_not_taken_for_a_torch_without_onednn(
    monkeypatch: pytest.MonkeyPatch, message: str, is_memory: bool
) -> None:
    """A job that began while memory was short would have other vectors than one that did not."""

    def refuse(*_: Any) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(cpu_choices, "_onednn", refuse)
    if is_memory:
        with pytest.raises(RuntimeError, match=message):
            has_onednn.__wrapped__(torch.float32)
    else:
        assert not has_onednn.__wrapped__(torch.float32)


def test_a_product_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    real = cpu_choices._onednn
    monkeypatch.setattr(cpu_choices, "_onednn", lambda *arguments: real(*arguments) * 1.01)
    assert not has_onednn.__wrapped__(torch.float32)


class Clock:
    """A clock that only the candidates advance."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "perf_counter", found)
    monkeypatch.setattr(time, "thread_time", found)
    return found


@pytest.mark.parametrize(("usual", "other", "choice"), [(1.0, 0.97, "usual"), (1.0, 0.9, "other"), (1.0, 2.0, "usual")])
def test_another_choice_than_the_usual_must_be_clearly_faster(
    clock: Clock, usual: float, other: float, choice: str
) -> None:
    candidates = {"usual": clock.taking(usual), "other": clock.taking(other)}
    assert faster(candidates, default="usual", clock=clock) == choice


def test_the_fastest_of_several_rounds_counts(clock: Clock) -> None:
    seconds = iter([9.0, 9.0, 0.5, 9.0])

    def unsteady() -> None:
        clock.now += next(seconds)

    candidates = {"steady": clock.taking(1.0), "unsteady": unsteady}
    assert faster(candidates, default="steady", clock=clock) == "unsteady"


@pytest.mark.parametrize("slow", [torch.bfloat16, torch.float32])
def test_auto_takes_bfloat16_where_it_is_faster(
    slow: torch.dtype, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (Linear, OnednnLinear):
        monkeypatch.setattr(kind, "__call__", lambda self, x: clock.taking(1 + (x.dtype == slow))())
    assert bfloat16_is_faster.__wrapped__() == (slow == torch.float32)


def test_dtypes_are_compared_on_one_thread_which_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr(OnednnLinear, "__call__", lambda self, x: used.append(torch.get_num_threads()))
    monkeypatch.setattr(Linear, "__call__", lambda self, x: used.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        bfloat16_is_faster.__wrapped__()
        assert (set(used), torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(before)


def fused(encoder: Encoder) -> FusedDecoder:
    decoder = encoder._forward._fused
    assert decoder is not None
    return decoder


@needs_onednn
@pytest.mark.parametrize("slow", ["torch", "packed"])
def test_what_is_measured_as_faster_is_chosen(
    encoder: Encoder, clock: Clock, slow: Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (Linear, OnednnLinear):
        monkeypatch.setattr(kind, "__call__", lambda self, x: clock.taking(1 + (type(self) is KINDS[slow]))())
    fast: Route = "padded" if slow == "torch" else "runs"
    taken = []

    def attending(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan, **options: Any) -> None:
        assert plan.routes is not None
        taken.append((max(plan.lengths), q.shape[1:], k.shape[1:], options))
        clock.now += 1 if plan.routes[0][1] == fast else 2

    monkeypatch.setattr(cpu_choices, "attention", attending)
    found = CpuChoices.measured(fused(encoder), 100)
    products: Products = "packed" if slow == "torch" else "torch"
    assert found == CpuChoices(products=products, routes=((64, fast), (256, fast)))
    how = {"scale": 0.25, "causal": False, "window": None}
    assert {length for length, *_ in taken} == {32, 100}
    assert all(one[1:] == ((4, 16), (2, 16), how) for one in taken)


@pytest.mark.parametrize(
    ("routes", "shown"),
    [
        ((), "runs"),
        (((64, "padded"), (256, "padded"), (2048, "runs")), "padded up to 256 tokens, runs up to 2,048 tokens"),
    ],
)
def test_choices_are_shown_in_a_line(routes: Routes, shown: str) -> None:
    assert str(CpuChoices(products="packed", routes=routes)) == f"products: packed; attention: {shown}"


def test_a_quantized_decoder_is_not_measured() -> None:
    encoder = Encoder.from_pretrained(device="cpu", dtype="float32")
    decoder = fused(encoder).with_linears(lambda weight, bias: object())  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="unquantized"):
        CpuChoices.measured(decoder, 100)


@pytest.mark.skipif(int8_bits() is None, reason="needs an x86-64 CPU with AVX2 or VNNI")
def test_a_long_job_in_int8_keeps_the_defaults() -> None:
    encoder = Encoder.from_pretrained(device="cpu", dtype="float32", quantize="int8")
    encoder.encode(TEXTS * 20)  # the unquantized decoder is gone now
    before = encoder.choices
    encoder.measure_for(10**12)
    assert encoder.choices == before


@pytest.mark.parametrize("products", ["torch", "onednn", "packed"])
@pytest.mark.parametrize("route", ["runs", "padded"])
def test_every_choice_gives_the_same_vectors(
    tiny_llama: Path, encoder: Encoder, products: Products, route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = encoder.encode(TEXTS)
    other = Encoder.from_pretrained(tiny_llama, dtype="float32", device="cpu")
    choices = CpuChoices(products=products, routes=((64, route), (2048, "runs")))
    other.choose(choices.to_json())
    taken = set()
    build = AttentionPlan.build

    def recorded(*arguments: Any, **options: Any) -> AttentionPlan:
        taken.add(options["routes"])
        return build(*arguments, **options)

    monkeypatch.setattr(AttentionPlan, "build", recorded)
    assert abs(other.encode(TEXTS) - expected).max() < 1e-5
    assert taken == {choices.routes}
    assert kinds(fused(other)) == {KINDS[products] if has_onednn(torch.float32) else Linear}
    assert other.choices == choices.to_json()
    assert CpuChoices.from_json(choices.to_json()) == choices
    with other._forward.in_float32():
        pass
    assert kinds(fused(other)) == {KINDS[products] if has_onednn(torch.float32) else Linear}


def kinds(decoder: FusedDecoder) -> set[type]:
    return {type(one) for layer in decoder.layers for one in (layer.qkv, layer.output, layer.gate_up, layer.down)}


@needs_onednn
@pytest.mark.parametrize(("memory", "products"), [(0, "onednn"), (2**40, "packed")])
def test_weights_are_packed_where_memory_allows(
    encoder: Encoder, memory: int, products: Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_choices, "memory_bytes", lambda: memory)
    choices = CpuChoices.default(fused(encoder))
    assert choices.products == products
    chosen = choices.apply(fused(encoder))
    assert kinds(chosen) == {KINDS[products]}
    assert choices.apply(chosen).layers is chosen.layers  # packed once
    assert kinds(CpuChoices(products="torch", routes=()).apply(chosen)) == {Linear}


def test_a_batch_on_a_cpu_is_filled_up(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = []
    forward = Forward.__call__

    def recorded(self: Forward, packed: Packed) -> torch.Tensor:
        tokens.append(len(packed.token_ids))
        return forward(self, packed)

    monkeypatch.setattr(Forward, "__call__", recorded)
    encoder.encode(TEXTS)
    assert tokens
    assert all(count % 8 == 0 for count in tokens)  # of 128 tokens or more


def test_only_long_jobs_are_worth_a_measurement(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.from_pretrained(tiny_llama, dtype="float32", device="cpu")
    measured = CpuChoices(products="torch", routes=((64, "runs"),))
    monkeypatch.setattr(CpuChoices, "measured", lambda *_: measured)
    before = encoder.choices
    encoder.measure_for(10_000)
    assert encoder.choices == before
    encoder.measure_for(10**12)
    assert encoder.choices == measured.to_json()
