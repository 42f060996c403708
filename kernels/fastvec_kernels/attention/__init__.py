"""Attention over packed sequences, bidirectional or causal.

`interface` contains the formula, the reference and the public `attention`; `plan` describes a batch. On a GPU, `op`
launches the Triton kernels in `forward` and `backward`, which share `parts`, and in `specialized`, with tiles from
`configs`. Elsewhere, and for float64 and heads too wide for the kernels, `torch_ops` computes the same, on a CPU by one
of two routes: SDPA, or the matrix products of `padded`.
"""

from fastvec_kernels.attention.interface import AttentionPlan, attention, attention_reference

__all__ = ["AttentionPlan", "attention", "attention_reference"]
