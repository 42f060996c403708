"""A tiny random decoder of every supported family, with every kind of layer in the family's checkpoints."""

import inspect
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

WINDOW = 4
VOCABULARY = 128
# each family uses the sizes that its config has
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "sliding_window": WINDOW,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "first_k_dense_replace": 1,
    # latent attention: value heads and query heads have different sizes
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    # names in older configs
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 4,
    "n_positions": 128,
    "dff": 96,
    "ffn_dim": 96,
}
LATENT = {"head_dim": 8, "num_key_value_heads": 4}  # head_dim is the rotary part, and each query head has its own key
MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2}
MOSTLY_SLIDING = {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4],
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 64,
}
SHARED_KEYS = {  # the last two of six layers reuse keys and values of earlier layers
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
}
FAMILY: dict[str, dict[str, Any]] = {
    "axk1": LATENT,
    "beam": MOSTLY_SLIDING | {"n_group": 2, "mlp_layer_types": ["dense", "sparse"] * 2},
    "cohere": {"use_qk_norm": True},
    "cohere2": MOSTLY_SLIDING,
    "cohere2_moe": MOSTLY_SLIDING,
    "cwm": MIXED,
    "dbrx": {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 3,
        "max_seq_len": 128,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "dots1": MIXED,
    "exaone4": MOSTLY_SLIDING,
    "exaone_moe": MOSTLY_SLIDING,
    "flint": MIXED | {"mlp_only_layers": [0]},
    "gemma2": MIXED | {"attn_logit_softcapping": 5.0},
    "gemma3_text": MOSTLY_SLIDING,
    "gemma3n_text": SHARED_KEYS | {"laurel_rank": 4, "activation_sparsity_pattern": [0.5, 0.5] + [0.0] * 4},
    "gemma4_text": SHARED_KEYS | {"global_head_dim": 32, "enable_moe_block": True, "top_k_experts": 2},
    "glm4_moe_lite": LATENT,
    "gpt2": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    "gpt_bigcode": {"multi_query": True},
    "gpt_oss": MIXED,
    "granite": {"attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "granite_swa": MIXED,
    "granitemoe_swa": MIXED,
    "hrm_text": {"H_cycles": 2, "L_cycles": 2},
    "jetmoe": {"kv_channels": 16},
    "kolibri1": MOSTLY_SLIDING,
    "laguna": MIXED,
    "llama": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        }
    },
    "longcat_flash": LATENT
    | {"num_layers": 2, "ffn_hidden_size": 96, "expert_ffn_hidden_size": 32, "zero_expert_num": 2},
    "mellum": MIXED | {"mlp_layer_types": ["dense", "sparse"] * 2},
    "mimo_v2_flash": {"layer_types": ["full_attention", "sliding_attention"] * 2},
    "minicpm3": LATENT
    | {"rope_parameters": LONGROPE | {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0] * 4, "factor": 8.0}},
    "ministral": MIXED,
    "ministral3": {  # queries are scaled by position, even in the short test sequences
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 8,
            "llama_4_scaling_beta": 0.1,
        }
    },
    "mistral4": LATENT,
    "modernbert-decoder": MIXED | {"local_attention": 2 * WINDOW, "cls_token_id": 1, "sep_token_id": 2},
    "olmo": {"clip_qkv": 4.0},
    "olmo3": MOSTLY_SLIDING,
    "opt": {"word_embed_proj_dim": 48},
    "persimmon": {"qk_layernorm": True},
    "phi": {"qk_layernorm": True},
    "phi3": {"rope_parameters": LONGROPE},
    "phimoe": {"rope_parameters": LONGROPE | {"short_mscale": 1.2, "long_mscale": 1.3}},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen2_moe": {"use_sliding_window": True, "max_window_layers": 4, "mlp_only_layers": [1]},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3_moe": {"use_sliding_window": True, "mlp_only_layers": [1]},
    "smollm3": {"use_sliding_window": True, "no_rope_layer_interval": 2},  # layers without RoPE have the window
    "stablelm": {"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True},
    "vaultgemma": MIXED | {"attn_logit_softcapping": 5.0},
    "youtu": LATENT,
}


def tiny_config(model_type: str, **overrides: Any) -> PretrainedConfig:
    known = inspect.signature(CONFIG_MAPPING[model_type].__init__).parameters
    sizes = {name: size for name, size in SIZES.items() if name in known}
    config: PretrainedConfig = AutoConfig.for_model(model_type, **{**sizes, **FAMILY.get(model_type, {}), **overrides})
    return config


def tiny_model(model_type: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> PreTrainedModel:
    """Make a random model whose attention is not uniform.

    With transformers' std of 0.02, a wrong mask would change states by less than 1e-5. One-dimensional parameters are
    randomized too: norms and sinks start constant, biases zero.
    """
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModel.from_config(tiny_config(model_type, **overrides), dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.1)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model
