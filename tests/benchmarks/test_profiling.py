"""The arithmetic of `benchmarks.profiling`, on made-up kernels, and a run of it; real timings are not checked."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from benchmarks import profiling
from benchmarks.engines.random_decoder import DECODERS
from benchmarks.profiling import Interval
from tests.benchmarks.test_forward import rows_in, run


def test_idle_is_where_no_kernel_runs() -> None:
    intervals = [
        Interval("nvjet_tst_128x256", 100, 140, 40),
        Interval("_rope_kernel", 150, 160, 10),  # 10 idle before
        Interval("_swiglu_kernel", 155, 175, 20),  # on another stream
        Interval("flash_fwd_kernel<cutlass::bfloat16_t>", 200, 220, 20),  # 25 idle before
        Interval("Memset (Device)", 205, 210, 5),  # inside the one before
    ]
    times = profiling.times_of(intervals)
    assert times == {"products": 40, "rest": 25 + 20, "idle": 10 + 25}
    assert sum(times.values()) == 220 - 100
    assert profiling.times_of(list(reversed(intervals))) == times


def test_kernels_are_summed_by_name_for_one_forward() -> None:
    intervals = [Interval("b", 0, 1000, 1000), Interval("a", 0, 3000, 3000), Interval("b", 2000, 4000, 2000)]
    intervals += [Interval("a", 0, 2000, 2000)]
    first, second = profiling.kernels_of(intervals, 2)
    assert (first.name, first.calls, first.ms, first.share) == ("a", 1, 2.5, 5 / 8)
    assert (second.name, second.calls, second.ms, second.share) == ("b", 1, 1.5, 3 / 8)
    many = profiling.kernels_of([Interval(f"k{index:02}", 0, 1000, 1000) for index in range(40)], 1)
    assert profiling.table(many)[-1].split() == ["15", "others", "15.0", "15.000", "ms", "37.5%"]


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNT", True),
        ("void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<cutlass::gemm::kernel::G>>", True),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", True),
        ("aten::mm", True),
        ("aten::addmm_", True),
        ("_gated_linear_kernel", True),
        ("_gated_kernel", False),
        ("aten::mul", False),
        ("_forward_kernel", False),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", False),
    ],
)
def test_products_are_told_from_the_rest_by_their_names(name: str, product: bool) -> None:
    assert profiling.is_product(name) == product


def test_names_of_kernels_are_short() -> None:
    name = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>(int)"
    assert profiling.short_name(name) == "vectorized_elementwise_kernel<4, CUDAFunctor_add<BFloat16>>(int)"
    assert len(profiling.short_name("k" * 300)) == profiling.LONGEST_NAME
    assert profiling.short_name("aten::mm") == "aten::mm"


def test_profiling_runs_to_the_end(tmp_path: Path) -> None:
    arguments = ("--shape", "tiny", "--length", "20", "--budget", "64")
    output = run(profiling.main, *arguments, "--trace", str(tmp_path / "t.json"), "--append", str(tmp_path / "rows"))
    whole, *kernels = rows_in(tmp_path / "rows")
    assert (whole["benchmark"], whole["tokens"], whole["torch_ops"]) == ("profiling", 60, [])
    parts = [whole[name] for name in ("products", "rest", "idle")]
    assert sum(parts) == pytest.approx(whole["us_per_token_profiled"])
    assert min(parts) >= 0
    assert whole["idle_share"] == pytest.approx(whole["idle"] / sum(parts))
    assert sum(kernel["share"] for kernel in kernels) == pytest.approx(1)
    products = [kernel for kernel in kernels if profiling.is_product(kernel["name"])]
    assert sum(kernel["calls"] for kernel in products) >= 4 * DECODERS["tiny"].sizes.layers
    assert "µs/token; profiled" in output
    assert json.loads(gzip.decompress((tmp_path / "t.json.gz").read_bytes()))["traceEvents"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")
def test_profiling_fp8_needs_a_gpu() -> None:
    assert "--quantize fp8 needs a GPU with fp8" in run(profiling.main, "--quantize", "fp8", code=2)


def test_a_length_is_a_number_or_a_pattern() -> None:
    assert "neither a number nor one of short" in run(profiling.main, "--length", "2k", code=2)
