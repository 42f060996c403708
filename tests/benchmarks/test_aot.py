"""The ahead-of-time gate: it compiles the kernels a GPU would run and rejects those that break a rule."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.aot import Compiled, failures, save, verdict
from benchmarks.ops.machine_code import SPILL_EXEMPTIONS, MachineCode, large_products
from fastvec_kernels._launch import HAS_TRITON
from tests import ROOT

GOOD = MachineCode(
    kernel="forward",
    arch="sm_90",
    hash="a1",
    tiles="rows=128",
    warps=8,
    stages=2,
    registers=168,
    stack_bytes=0,
    spills=0,
    shared=100_000,
    tensor=24,
    older_tensor=0,
    async_copies=24,
    bulk_copies=0,
    wide=20,
    stores=8,
    needs_wgmma=True,
)


def compiled(*kernels: MachineCode, error: str | None = None) -> Compiled:
    return Compiled(case="d128", arch="sm_90", kernels=kernels, error=error)


def run_without_interpreter(arguments: Sequence[str], cache: Path) -> str:
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environ["TRITON_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton's compiler")
def test_one_configuration_of_every_kernel_passes(tmp_path: Path) -> None:
    output = run_without_interpreter(["benchmarks.aot", "--quick", "--jobs", "2"], tmp_path)
    for case in (
        "attention d128 bf16",
        "pooling 1024 mean",
        "rms_norm 1024",
        "rope d128",
        "rope_attention d128 16/8 norm",
        "swiglu swiglu 3072",
    ):
        assert f"  {case}" in output


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton's compiler")
def test_kernels_that_spill_or_take_too_much_shared_memory_are_refused(tmp_path: Path) -> None:
    first, header, spilling, large, second = run_without_interpreter(
        ["tests.helpers.bad_kernels"], tmp_path
    ).splitlines()
    assert (first, header, second) == ("0", "2 failures:", "1")
    assert "product_kernel (256 × 256 × 16; M=256 N=256 K=16) spills: " in spilling
    assert large.endswith("needs 131,072 bytes of shared memory, but sm_80 has 101,376")


def test_a_good_kernel_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict([compiled(GOOD)]) == 0
    assert "refused" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        ({"stack_bytes": 8}, "spills: 8 bytes of stack, 0 spill instructions or registers"),
        ({"spills": 3}, "spills: 0 bytes of stack, 3 spill instructions or registers"),
        ({"shared": 240_000}, "needs 240,000 bytes of shared memory, but sm_90 has 232,448"),
        ({"stores": 0}, "writes nothing: the compiler replaced it by a trap"),
        ({"tensor": 0}, "has a matrix product of at least 64 rows but no HGMMA instruction"),
        ({"unspecialized": True}, "asks for warp specialization but has no specialized warp"),
    ],
)
def test_each_rule_refuses(change: dict[str, int], failure: str) -> None:
    bad = replace(GOOD, **change)  # type: ignore[arg-type]
    assert failures([compiled(GOOD, bad)]) == [f"sm_90 forward (d128; rows=128) {failure}"]


def test_a_kernel_without_large_products_needs_no_warpgroup_instruction() -> None:
    assert replace(GOOD, tensor=0, needs_wgmma=False).failures() == []


def test_what_does_not_compile_is_refused() -> None:
    assert failures([compiled(error="CompilationError: line 3")]) == ["sm_90 d128: CompilationError: line 3"]


def test_nothing_is_exempt_from_the_rule_on_spills() -> None:
    assert SPILL_EXEMPTIONS == {}


@pytest.mark.parametrize(
    ("operands", "large"),
    [
        ("tensor<64x128xbf16> * tensor<128x64xbf16> -> tensor<64x64xf32>", True),
        ("tensor<64x128xf16> * tensor<128x64xf16> -> tensor<64x64xf32>", True),
        ("tensor<32x128xbf16> * tensor<128x64xbf16> -> tensor<32x64xf32>", False),
        ("tensor<64x128xf32> * tensor<128x64xf32> -> tensor<64x64xf32>", False),
    ],
)
def test_large_products_are_found_in_the_intermediate_representation(operands: str, large: bool) -> None:
    assert large_products(f"  %4 = tt.dot %a, %b, %c, inputPrecision = tf32 : {operands} loc(#loc1)") is large


def test_the_table_has_a_row_for_each_distinct_kernel(tmp_path: Path) -> None:
    save([compiled(GOOD), compiled(GOOD, replace(GOOD, hash="b2", kernel="backward"))], tmp_path)
    rows = (tmp_path / "aot.md").read_text().splitlines()
    assert [row.split(" | ")[0] for row in rows] == ["| kernel", "| ---", "| forward", "| backward"]
