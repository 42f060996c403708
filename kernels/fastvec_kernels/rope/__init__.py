from fastvec_kernels.rope.interface import rope, rope_reference

__all__ = ["rope", "rope_reference"]
