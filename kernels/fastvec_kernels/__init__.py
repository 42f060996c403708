"""Operations over packed sequences, each with its PyTorch reference."""

from fastvec_kernels.attention import AttentionPlan, attention, attention_reference
from fastvec_kernels.pooling import pool, pool_reference

__all__ = ["AttentionPlan", "attention", "attention_reference", "pool", "pool_reference"]
