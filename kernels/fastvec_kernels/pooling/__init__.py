from fastvec_kernels.pooling.interface import pool, pool_reference

__all__ = ["pool", "pool_reference"]
