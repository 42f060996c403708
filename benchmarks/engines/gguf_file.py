"""Converts a Llama folder to a GGUF file for llama.cpp: bidirectional and mean pooled, without a tokenizer.

llama.cpp gets token ids, because GGUF cannot represent every tokenizer's rules. Its RoPE rotates pairs of adjacent
dimensions, and transformers' RoPE pairs the two halves of a head, so the rows of query and key weights are reordered.
"""

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file

NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LAYER = re.compile(r"layers\.(\d+)\.(.+)")


def write_gguf(folder: Path, path: Path, weights: str) -> None:
    """Write the LlamaModel in `folder` to `path`, with matrices in the GGUF type `weights`: F32, F16, BF16 or Q8_0."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, config)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, tensor in load_file(folder / "model.safetensors").items():
        weight = tensor.float().numpy()
        block, own = _name(name)
        if own in heads:
            weight = _neighbours(weight, heads[own])
        kind = gguf.GGMLQuantizationType[weights if weight.ndim == 2 else "F32"]
        writer.add_tensor(f"{block}{own}.weight", gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("none")


def _name(name: str) -> tuple[str, str]:
    """Return the GGUF block prefix (empty outside the layers) and the name in the block of a transformers tensor."""
    name = name.removeprefix("model.").removesuffix(".weight")
    layer = LAYER.fullmatch(name)
    return (f"blk.{layer[1]}.", NAMES[layer[2]]) if layer else ("", NAMES[name])


def _neighbours(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Interleave the two halves of each head's D rows in `weight` [heads · D, H]."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)
