"""Operations on packed sequences, each with Triton kernels and a PyTorch reference implementation.

- `attention` and `rope`, `pooling`: packages, each with an `interface` that has the public functions.
- `rope_attention`: both in one kernel, for inference on short sequences.
- `rms_norm`, `swiglu` (also geglu), `dropout` by token, `quantize` (rows to fp8): one module each.
- `gated_linear`: the gate-up product with its gated unit in one kernel, for inference.
- `_launch` decides between a GPU, Triton's interpreter and PyTorch, and launches kernels; `_switch` sends single ops to
  PyTorch and checks kernels against the references, within the bounds of `_accuracy`; `_random` has random bits that
  depend only on a seed and a position.
"""

from fastvec_kernels._launch import to_device, to_host
from fastvec_kernels._switch import OPS, checked_kernels, torch_ops, use_torch_ops
from fastvec_kernels.attention.interface import AttentionPlan, attention, attention_reference
from fastvec_kernels.dropout import dropout, dropout_reference
from fastvec_kernels.gated_linear import gated_linear, gated_linear_reference
from fastvec_kernels.pooling.interface import pool, pool_reference
from fastvec_kernels.quantize import Fp8Rows, quantize_rows, quantize_rows_reference
from fastvec_kernels.rms_norm import (
    add_rms_norm,
    add_rms_norm_fp8,
    add_rms_norm_reference,
    rms_norm,
    rms_norm_fp8,
    rms_norm_reference,
)
from fastvec_kernels.rope.interface import rope, rope_reference
from fastvec_kernels.rope_attention import rope_attention, rope_attention_reference
from fastvec_kernels.swiglu import Activation, gated, gated_fp8, geglu, geglu_reference, swiglu, swiglu_reference

__all__ = [
    "OPS",
    "Activation",
    "AttentionPlan",
    "Fp8Rows",
    "add_rms_norm",
    "add_rms_norm_fp8",
    "add_rms_norm_reference",
    "attention",
    "attention_reference",
    "checked_kernels",
    "dropout",
    "dropout_reference",
    "gated",
    "gated_fp8",
    "gated_linear",
    "gated_linear_reference",
    "geglu",
    "geglu_reference",
    "pool",
    "pool_reference",
    "quantize_rows",
    "quantize_rows_reference",
    "rms_norm",
    "rms_norm_fp8",
    "rms_norm_reference",
    "rope",
    "rope_attention",
    "rope_attention_reference",
    "rope_reference",
    "swiglu",
    "swiglu_reference",
    "to_device",
    "to_host",
    "torch_ops",
    "use_torch_ops",
]
