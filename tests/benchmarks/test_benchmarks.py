"""The arithmetic, checks and reports of the benchmarks; real timings are not checked."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend

from benchmarks.ops import roofline
from benchmarks.ops.attention import attention_workload, padded_sdpa, runs_sdpa
from benchmarks.ops.attention_tiles import forward_tile, useful_share
from benchmarks.ops.measurement import WORKLOAD_BUILDERS, rows_of
from benchmarks.ops.roofline import Ceilings
from benchmarks.ops.shapes import PATTERNS, SHAPES, SMALL_SHAPES, make_lengths, with_real_lengths
from benchmarks.ops.timing import Timing, copies_beyond_cache, measure, summary
from benchmarks.ops.workload import Implementation, Tensors, Workload
from benchmarks.reporting.plots import plot
from benchmarks.reporting.results import HEADER, Row, as_json
from fastvec_kernels._accuracy import compare
from tests import ROOT

ROW = Row(
    op="attention",
    group="d128 32/8",
    shape="d128 32/8 512",
    implementation="fastvec",
    direction="forward",
    status="ok",
    error=0.002,
    timing=Timing(median=200e-6, p20=190e-6, p80=220e-6, host=45e-6, calls=200),
    bytes=400_000_000,
    flops=80e9,
    ceiling=800e12,
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_lengths_fill_the_batch_and_are_the_same_every_time(pattern: str) -> None:
    lengths = make_lengths(pattern, 16_384)
    assert sum(lengths) == 16_384
    assert min(lengths) > 0
    assert lengths == make_lengths(pattern, 16_384)


def test_real_lengths_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "wiki.txt"
    file.write_text("7000\n6000\n5000\n")
    shapes = with_real_lengths(SHAPES["attention"], file)
    assert [shape.name for shape in shapes[:2]] == ["d128 32/8 wiki", "d128 16/16 wiki"]
    assert sum(shapes[0].lengths) == 16_384
    assert set(shapes[0].lengths) < {7000, 6000, 5000, 5384, 4384, 3384}  # shuffled, the last one cut to fit


def test_names_of_shapes_are_unique() -> None:
    for shapes in SHAPES.values():
        assert len({shape.name for shape in shapes}) == len(shapes)


def test_attention_counts_two_products_forward_and_five_backward() -> None:
    # 2 sequences of 10 tokens, 4 heads: each product takes 2·10·10·64 FLOPs per head
    assert roofline.attention_flops([10, 10], 4, 64) == 2 * 2 * 2 * 10 * 10 * 64 * 4
    assert roofline.attention_flops([10, 10], 4, 64, backward=True) == 5 * 2 * 2 * 10 * 10 * 64 * 4


def test_useful_bytes_are_each_tensor_once() -> None:
    q, k = 20 * 4 * 64 * 2, 20 * 2 * 64 * 2  # bf16 [20, 4, 64] and [20, 2, 64]
    assert roofline.attention_bytes(20, 4, 2, 64) == q + k + k + q
    assert roofline.attention_bytes(20, 4, 2, 64, backward=True) == (q + k + k + q) + q + (q + k + k)  # and dO
    assert roofline.bytes_of_rms_norm(20, 64, 2, add=False) == {"forward": 2 * 2560, "backward": 3 * 2560}
    assert roofline.bytes_of_rms_norm(20, 64, 2, add=True) == {"forward": 4 * 2560, "backward": 4 * 2560}
    assert roofline.bytes_of_swiglu(20, 64, 2) == {"forward": 3 * 2560, "backward": 5 * 2560}
    head = 20 * 64 * 2
    assert roofline.bytes_of_rope(20, 4, 2, 64, 2, variant="plain") == {"forward": 13 * head, "backward": 17 * head}
    assert roofline.bytes_of_rope(20, 4, 2, 64, 2, variant="norm") == {"forward": 13 * head, "backward": 23 * head}
    assert roofline.bytes_of_rope(20, 4, 2, 64, 2, variant="bias") == {"forward": 17 * head, "backward": 17 * head}
    states, vectors = 30 * 64 * 2, 2 * 64 * 4
    assert roofline.bytes_of_pool([10, 20], 64, 2, mode="mean") == {
        "forward": 2 * states + vectors,
        "backward": 3 * states + vectors,
    }
    one = 2 * 64 * 2
    assert roofline.bytes_of_pool([10, 20], 64, 2, mode="last")["forward"] == 2 * one + vectors


def test_tiles_of_short_texts_are_packed_with_heads() -> None:
    assert useful_share(20, 1, 128, 128) == 400 / 128**2
    assert useful_share(20, 4, 64, 32) == 1600 / (2 * 64 * 32)
    assert useful_share(300, 4, 128, 64) == 300 * 300 * 4 / (10 * 128 * 5 * 64)
    assert forward_tile(20, 4, 128, "sm_90").keys == 32
    assert forward_tile(2000, 4, 128, "sm_90").rows == 128


def test_a_timing_is_the_median_and_the_outer_fifths() -> None:
    timing = summary([5.0, 1.0, 2.0, 3.0, 4.0, 6.0], [0.1, 0.3, 0.2])
    assert timing == Timing(median=3.5, p20=2.0, p80=5.0, host=0.2, calls=6)


class CountingEvent:
    """A fake CUDA event: each one is made one second after the previous one."""

    made = 0

    def __init__(self, enable_timing: bool) -> None:
        CountingEvent.made += 1
        self.second = CountingEvent.made

    def record(self) -> None: ...

    def elapsed_time(self, later: "CountingEvent") -> float:
        return 1e3 * (later.second - self.second)


def test_every_call_is_timed_and_inputs_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[int] = []
    monkeypatch.setattr(torch.cuda, "Event", CountingEvent)
    monkeypatch.setattr(torch.cuda, "_sleep", slept.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    called: list[str] = []
    timing = measure(called.append, ["a", "b", "c"], seconds=0.0)
    assert called == ["a", "b", "c", "a", *"abcab"]  # three warm-up calls, one to estimate the duration, five timed
    assert (timing.median, timing.calls, len(slept)) == (1.0, 5, 1)


def test_sets_of_inputs_are_twice_the_cache() -> None:
    mib = 1 << 20
    assert copies_beyond_cache(30 * mib, 50 * mib) == 4
    assert copies_beyond_cache(200 * mib, 50 * mib) == 1
    assert copies_beyond_cache(1, 50 * mib) == 16


def test_a_row_says_time_rate_and_share_of_the_ceiling() -> None:
    assert HEADER == (
        "shape                              implementation         direction    median       p20       p80    host"
        "  TFLOP/s    GB/s % of peak    error"
    )
    assert str(ROW) == (
        "d128 32/8 512                      fastvec                forward    200.0 µs  190.0 µs  220.0 µs   45 µs"
        "    400.0    2000       50%  2.0e-03"
    )
    by_bytes = replace(ROW, flops=None, ceiling=4e12)
    assert str(by_bytes).split()[-3:] == ["2000", "50%", "2.0e-03"]
    assert str(replace(ROW, timing=None, status="not installed", error=None)).split()[-2:] == ["not", "installed"]
    assert replace(ROW, status="FAILED: error 1").failed


def test_json_says_where_when_and_what() -> None:
    document = json.loads(json.dumps(as_json([ROW], Ceilings(copy=3e12, matrix=8e14))))
    assert document["environment"].keys() == {"cpu", "gpu", "driver", "torch", "triton", "python", "commit", "date"}
    assert document["ceilings"] == {"copy": 3e12, "matrix": 8e14}
    (row,) = document["rows"]
    assert row["timing"]["median"] == 200e-6
    assert row["fraction"] == pytest.approx(0.5)


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, implementation="other", shape="d128 32/8 short"), replace(ROW, direction="backward")]
    plot(rows, "attention", tmp_path / "attention.png")
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


def small_attention() -> Workload:
    return attention_workload(SMALL_SHAPES["attention"][0], "cpu", torch.float32)


def with_only(workload: Workload, make: Callable[[], Implementation]) -> list[Row]:
    return list(rows_of(replace(workload, implementations={"fastvec": make}), None, timed=False))


def test_layouts_of_other_libraries_give_the_reference() -> None:
    workload = small_attention()
    lengths = workload.shape.lengths
    for make in (partial(padded_sdpa, lengths, "cpu", SDPBackend.MATH), partial(runs_sdpa, lengths, "cpu")):
        assert [row.status for row in with_only(workload, make)] == ["correct", "correct"]


def test_a_wrong_result_is_failed() -> None:
    workload = small_attention()
    right = runs_sdpa(workload.shape.lengths, "cpu")

    def one_row_off(*inputs: torch.Tensor) -> Tensors:
        (o,) = right.call(*inputs)
        return (torch.cat([o[:-1], 1.01 * o[-1:]]),)

    rows = with_only(workload, lambda: replace(right, call=one_row_off))
    assert [row.failed for row in rows] == [True, True]


def test_an_implementation_that_raises_is_a_row() -> None:
    def broken(*inputs: torch.Tensor) -> Tensors:
        raise RuntimeError("no kernel\nfor this")

    rows = with_only(small_attention(), lambda: Implementation(call=broken))
    assert [row.status for row in rows] == ["FAILED: RuntimeError: no kernel"] * 2


def test_a_nan_is_wrong() -> None:
    expected = torch.ones(3, 4)
    assert compare((expected,), (expected,), "forward") == (0.0, None)
    _, failure = compare((expected.log().log() * 0,), (expected,), "forward")
    assert failure is not None
    _, failure = compare((torch.full((3, 4), torch.nan),), (expected,), "forward")
    assert failure is not None
    _, failure = compare((expected[:2],), (expected,), "forward")
    assert failure == "shapes [(2, 4)], not [(3, 4)]"


@pytest.mark.parametrize("op", WORKLOAD_BUILDERS)
def test_every_op_has_a_workload_whose_reference_is_right(op: str) -> None:
    for shape in SMALL_SHAPES[op]:
        workload = WORKLOAD_BUILDERS[op](shape, "cpu", torch.float32)
        rows = list(rows_of(workload, None, timed=False, implementations="reference"))
        assert [row.status for row in rows] == ["correct"] * len(workload.bytes)


@pytest.mark.slow
def test_without_a_gpu_results_are_checked_and_kernels_compiled(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.kernels", "swiglu", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No GPU: times, rates and ceilings cannot be measured" in done.stdout
    document = json.loads((tmp_path / "swiglu.json").read_text())
    assert {(row["implementation"], row["status"], row["timing"]) for row in document["rows"]} == {
        ("fastvec", "correct", None)
    }
    assert "0 spills" in done.stdout or "sm_90" in (tmp_path / "aot.md").read_text()
