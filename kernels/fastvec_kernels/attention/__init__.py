from fastvec_kernels.attention.interface import AttentionPlan, attention, attention_reference

__all__ = ["AttentionPlan", "attention", "attention_reference"]
