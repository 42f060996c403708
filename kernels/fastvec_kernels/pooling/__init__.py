"""Pooling: hidden states of tokens to one vector per sequence.

`interface` contains the formula, the reference and the public `pool`; `op` launches the Triton kernels in `kernels`.
"""

from fastvec_kernels.pooling.interface import pool, pool_reference

__all__ = ["pool", "pool_reference"]
