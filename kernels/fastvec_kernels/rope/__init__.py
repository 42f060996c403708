"""Rotary position embeddings of q and k.

`interface` contains the formula, the reference, the public `rope` and its operators; `kernels` the Triton kernels.
"""

from fastvec_kernels.rope.interface import rope, rope_reference

__all__ = ["rope", "rope_reference"]
