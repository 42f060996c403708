"""Inference bypasses the registered operators: results are the same, and the compiler is not imported."""

import os
import subprocess
import sys

PROGRAM = """
import sys, torch
from fastvec_kernels import AttentionPlan, add_rms_norm, attention, pool, rms_norm, rope, swiglu
from fastvec_kernels._launch import kernels_on_cpu

torch.manual_seed(0)
x, qkv, angles = torch.randn(5, 16), torch.randn(5, 64), torch.randn(5, 8)
plan, spans = AttentionPlan.build([2, 3], "cpu"), torch.tensor([[0, 2], [2, 5]])


def everything():
    weight = torch.ones(16)
    q, k, v = rope(qkv, angles, angles, heads=2, kv_heads=1)
    o = attention(q, k, v, plan, scale=0.25)
    return [rms_norm(x, weight, 1e-6), *add_rms_norm(x, x, weight, 1e-6), o, swiglu(qkv), pool(x, spans, "mean")]


with kernels_on_cpu():
    with torch.inference_mode():
        passed_by = everything()
    assert "torch._dynamo" not in sys.modules
    dispatched = everything()
assert "torch._dynamo" in sys.modules  # so that the line above means something
assert all(map(torch.equal, passed_by, dispatched))
"""


def test_operators_are_passed_by_in_inference() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=environment)
