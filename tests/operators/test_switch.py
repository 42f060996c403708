"""The switch from kernels to PyTorch's operations, and the check of kernels against references."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import pytest
import torch
from torch.nn.attention import varlen

from fastvec_kernels import (
    OPS,
    AttentionPlan,
    _switch,
    add_rms_norm,
    attention,
    attention_reference,
    checked_kernels,
    dropout,
    gated_fp8,
    gated_linear,
    geglu,
    pool,
    quantize_rows,
    rms_norm,
    rope,
    rope_attention,
    swiglu,
    torch_ops,
    use_torch_ops,
)
from fastvec_kernels._accuracy import compare
from fastvec_kernels._launch import kernels_on_cpu
from fastvec_kernels.attention.torch_ops import _varlen_has_windows, varlen_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = (1, 20, 40)
T = sum(LENGTHS)


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run kernels (on a CPU in the interpreter), with no op switched before or after the test."""
    monkeypatch.setattr(_switch, "_on_torch", {})
    module = import_module("fastvec_kernels.gated_linear")
    monkeypatch.setattr(module, "WIDEST", dict.fromkeys(module.TILES, 64))
    with nullcontext() if DEVICE == "cuda" else kernels_on_cpu():
        yield


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


def calls() -> dict[str, Callable[[], Any]]:
    plan, spans = AttentionPlan.build(LENGTHS, DEVICE), torch.tensor([[0, 1], [1, 21], [21, 61]])
    x, qkv, angles, weight = random(T, 16), random(T, 64), random(T, 8), random(16)
    q, k, v = random(T, 2, 16), random(T, 1, 16), random(T, 1, 16)
    by_position = torch.cat([random(64, 16)[:length] for length in LENGTHS])
    tokens = torch.zeros(T, 2, dtype=torch.int64, device=DEVICE)
    return {
        "attention": lambda: attention(q, k, v, plan, scale=0.25),
        "dropout": lambda: dropout(x, tokens, p=0.5, seed=1),
        "gated_linear": lambda: gated_linear(qkv.half(), random(16, 64).half() / 8, "silu"),
        "pool": lambda: pool(x, spans, "mean", residual=x, weight=weight, normalize=True),
        "quantize_rows": lambda: quantize_rows(x),
        "rms_norm": lambda: (rms_norm(x, weight, 1e-6), add_rms_norm(x, x, weight, 1e-6)),
        "rope": lambda: rope(qkv, angles, angles, heads=2, kv_heads=1),
        "rope_attention": lambda: rope_attention(
            random(T, 128).half(), by_position, by_position, plan, heads=2, kv_heads=1, scale=0.25
        ),
        "swiglu": lambda: (swiglu(qkv), geglu(qkv)),
    }


def launches(name: str, monkeypatch: pytest.MonkeyPatch, replace: Callable[..., None]) -> None:
    """Let op `name` launch its kernels by `replace`."""
    within = {"attention": "attention.op", "pool": "pooling.op", "rope": "rope.kernels", "quantize_rows": "quantize"}
    monkeypatch.setattr(import_module(f"fastvec_kernels.{within.get(name, name)}"), "launch", replace)


def refuse(kernel: Any, *_: Any, **__: Any) -> None:
    raise RuntimeError(f"PTX of {kernel.__name__} was refused\nsecond line")


def test_every_kernel_passes_the_check() -> None:
    assert calls().keys() == set(OPS)
    with checked_kernels() as failures:
        for call in calls().values():
            call()
    assert failures == {}


@pytest.mark.parametrize("name", OPS)
def test_a_kernel_that_the_driver_refuses_is_replaced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = calls()[name]()
    launches(name, monkeypatch, refuse)
    with pytest.raises(RuntimeError, match="was refused"):
        calls()[name]()
    with checked_kernels() as failures:
        checked = calls()[name]()
    assert failures.keys() == {name}
    assert failures[name].startswith("RuntimeError: PTX of ")
    assert "second line" not in failures[name]
    assert dict(torch_ops()) == failures
    for found in (checked, calls()[name]()):
        assert compare(flat(found), flat(expected))[1] is None


def test_the_kernels_that_replace_another_are_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rope_attention", "rope", "attention"):
        launches(name, monkeypatch, refuse)
    with checked_kernels() as failures:
        first, second = (calls()["rope_attention"]() for _ in range(2))
    assert failures.keys() == {"rope_attention", "rope", "attention"}
    assert compare((second,), (first.float(),))[1] is None


def flat(result: Any) -> tuple[torch.Tensor, ...]:
    return tuple(x for part in result for x in flat(part)) if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name", OPS)
def test_a_kernel_that_writes_nothing_fails_the_check(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches(name, monkeypatch, lambda *_, **__: None)  # the results are the NaN of uninitialized memory
    with checked_kernels() as failures:
        result = calls()[name]()
    assert failures.keys() == {name}
    assert "error" in failures[name]
    assert all(x.float().isfinite().all() for x in flat(result))


def test_a_small_error_of_one_row_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("fastvec_kernels.rms_norm")
    right = module._launch_forward

    def one_row_off(*inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        y, total = right(*inputs)
        y[7] *= 1.001
        return y, total

    monkeypatch.setattr(module, "_launch_forward", one_row_off)
    with checked_kernels() as failures, torch.inference_mode():
        rms_norm(random(T, 16), random(16), 1e-6)
    assert failures == {"rms_norm": "error 1.00e-03, allowed 2.00e-05"}


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_what_is_no_fault_of_a_kernel_does_not_fail_the_check() -> None:
    wide, weight = random(2, 2 * 40_000).half(), random(16)
    overflowed = random(T, 16)
    overflowed[3] = torch.inf
    q, k, v = (3 * random(T, heads, 16) for heads in (2, 1, 1))
    plan = AttentionPlan.build(LENGTHS, DEVICE)
    with checked_kernels() as failures:
        gated_fp8(wide, "silu")  # wider than the kernel that quantizes
        rms_norm(overflowed, weight, 1e-6)
        with torch.autocast(DEVICE, torch.bfloat16):
            attention(q, k, v, plan, scale=1.0)
    assert failures == {}


def test_large_rows_do_not_hide_an_error_of_a_normal_one() -> None:
    expected = random(T, 16)
    expected[:3] *= 1000
    found = expected.clone()
    found[7] *= 1.01
    assert compare((found,), (expected,))[1] is not None


def test_an_unknown_op_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no op named atention: choose from attention, dropout"):
        use_torch_ops({"atention": "a typo"})


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (False, 3), (True, 3)])
def test_pytorchs_packed_attention_is_called_as_the_reference(
    causal: bool, window: int | None, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs a GPU, so its documented meaning stands in for it: `window_size` is (keys before, keys after)."""

    def attend(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        starts_q: torch.Tensor,
        starts_k: torch.Tensor,
        longest_q: int,
        longest_k: int,
        *,
        scale: float,
        window_size: tuple[int, int],
    ) -> torch.Tensor:
        assert q.shape == k.shape == v.shape
        assert (longest_q, longest_k) == (40, 40)
        lengths = starts_q.diff().tolist()
        parts = (torch.split(x, lengths) for x in (q, k, v))
        before, after = (T if reach == -1 else reach for reach in window_size)
        outputs = []
        for q_one, k_one, v_one in zip(*parts, strict=True):
            ahead = torch.arange(len(q_one))[None, :] - torch.arange(len(q_one))[:, None]
            scores = scale * torch.einsum("ihd,jhd->hij", q_one, k_one)
            scores = scores.masked_fill((ahead < -before) | (ahead > after), -torch.inf)
            outputs.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), v_one))
        return torch.cat(outputs)

    def with_groups(*inputs: Any, enable_gqa: bool = False, **options: Any) -> torch.Tensor:
        q, k, v, *rest = inputs
        assert enable_gqa
        return attend(q, *(x.repeat_interleave(2, 1) for x in (k, v)), *rest, **options)

    def of_torch_2_10(*inputs: Any, is_causal: bool = False) -> torch.Tensor:
        raise NotImplementedError

    for function, has_windows in ((of_torch_2_10, False), (attend, True)):
        monkeypatch.setattr(varlen, "varlen_attn", function)
        _varlen_has_windows.cache_clear()
        assert _varlen_has_windows() == has_windows
    monkeypatch.setattr(varlen, "varlen_attn", with_groups if grouped else attend)
    q, k, v = (random(T, heads, 16).cpu() for heads in (2, 1, 1))
    plan = AttentionPlan.build(LENGTHS)
    found = varlen_attention(q, k, v, plan, 0.25, causal, window)
    expected = attention_reference(q, k, v, plan, scale=0.25, causal=causal, window=window)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
