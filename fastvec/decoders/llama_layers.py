"""Convert Llama-style layers to the fused path's `Layer`; a layer is recognized by its parts, not by its name.

The linear maps and norms of a layer determine where each one goes. What a norm or an activation computes is found by
running it.

Shapes: D hidden size.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastvec.decoders.fused import AttentionSettings, Layer, Linear, Norm
from fastvec_kernels import Activation, rms_norm_reference

LAYER_PARTS = {
    "self_attn",
    "mlp",
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    "resid_attn_dropout",
    "resid_mlp_dropout",
}
ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "q_norm", "k_norm"}
MLP_PARTS = {"gate_proj", "up_proj", "gate_up_proj", "down_proj", "act_fn", "activation_fn"}
SAME_NORM = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


class NotLlamaStyle(Exception):
    """The decoder has a part that is not Llama-style."""


def layer_of(layer: Any, attending: AttentionSettings, rotary: int) -> Layer:
    attn, mlp = layer.self_attn, layer.mlp
    joined_qkv, joined_gate_up = hasattr(attn, "qkv_proj"), hasattr(mlp, "gate_up_proj")
    require_parts(
        attn, ATTENTION_PARTS, needed={"o_proj", "qkv_proj"} if joined_qkv else {"q_proj", "k_proj", "v_proj", "o_proj"}
    )
    require_parts(
        mlp,
        MLP_PARTS,
        needed={"down_proj", "gate_up_proj"} if joined_gate_up else {"gate_proj", "up_proj", "down_proj"},
    )
    sandwich = hasattr(layer, "pre_feedforward_layernorm")
    after_only = hasattr(layer, "post_feedforward_layernorm") and not sandwich
    norms = {name: norm_of(module) for name, module in layer.named_children() if name.endswith("layernorm")}
    middle = norms.get("post_attention_layernorm")
    q_norm, k_norm = (norm_of(getattr(attn, name)) if hasattr(attn, name) else None for name in ("q_norm", "k_norm"))
    if (q_norm is None) != (k_norm is None) or (q_norm and k_norm and q_norm.eps != k_norm.eps):
        raise NotLlamaStyle("queries and keys do not have the same norms")
    qkv = [attn.qkv_proj] if joined_qkv else [attn.q_proj, attn.k_proj, attn.v_proj]
    gate_up = [mlp.gate_up_proj] if joined_gate_up else [mlp.gate_proj, mlp.up_proj]
    output = _joined([attn.o_proj])
    return Layer(
        heads=attending.heads,
        kv_heads=attending.kv_heads,
        qkv=_joined(qkv),
        q_norm=q_norm,
        k_norm=k_norm,
        rotary=rotary,
        attending=attending,
        output=output,
        gate_up=_joined(gate_up),
        activation=_activation(getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None)),
        down=_joined([mlp.down_proj]),
        before_attention=norms.get("input_layernorm"),
        after_attention=middle if sandwich or after_only else None,
        before_mlp=norms.get("pre_feedforward_layernorm") if sandwich or after_only else middle,
        after_mlp=norms.get("post_feedforward_layernorm"),
        scale=float(getattr(layer, "residual_multiplier", 1.0)),
        head_size=output.weight.shape[1] // attending.heads,
    )


def require_parts(module: Any, parts: set[str], *, needed: set[str]) -> None:
    """Raise NotLlamaStyle if `module` lacks a needed child, or has a child not in `parts` or its own parameter."""
    children = {name for name, _ in module.named_children()}
    if missing := needed - children:
        raise NotLlamaStyle(f"{type(module).__name__} has no {', '.join(sorted(missing))}")
    others = children - parts
    others |= {name for name, _ in module.named_parameters(recurse=False)}
    if others:
        raise NotLlamaStyle(f"{type(module).__name__} has {', '.join(sorted(others))}")


def _joined(linears: Sequence[nn.Linear]) -> Linear:
    """Concatenate linear maps of the same input into one; their weights become views of its weight."""
    if not all(type(one) is nn.Linear for one in linears):
        raise NotLlamaStyle(f"{type(linears[0]).__name__} is not an nn.Linear")
    if len(linears) == 1:
        return Linear(linears[0].weight, linears[0].bias)
    weight = torch.cat([one.weight for one in linears])
    for one, view in zip(linears, torch.split(weight, [len(one.weight) for one in linears]), strict=True):
        one.weight.data = view
    biases: list[torch.Tensor] = [one.bias for one in linears if one.bias is not None]
    if biases and len(biases) < len(linears):
        raise NotLlamaStyle("some linear maps of the same input have a bias and others do not")
    return Linear(weight, torch.cat(biases) if biases else None)


def norm_of(module: Any) -> Norm:
    """Return the RMSNorm that `module` computes, found by running it on random input; raise NotLlamaStyle if none."""
    weight = getattr(module, "weight", None)
    eps = next((getattr(module, name) for name in ("variance_epsilon", "eps") if hasattr(module, name)), None)
    if not isinstance(weight, torch.Tensor) or not isinstance(eps, float):
        raise NotLlamaStyle(f"{type(module).__name__} is no RMSNorm")
    x = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    expected = module(x).float()
    for scale in (weight, 1 + weight.float()):
        found = rms_norm_reference(x, scale, eps).float()
        if (found - expected).norm() <= SAME_NORM[weight.dtype] * expected.norm():
            return Norm(scale, eps)
    raise NotLlamaStyle(f"{type(module).__name__} is no RMSNorm")


def _activation(function: Any) -> Activation:
    x = torch.linspace(-4, 4, 65)
    known: dict[Activation, torch.Tensor] = {
        "silu": F.silu(x),
        "gelu_tanh": F.gelu(x, approximate="tanh"),
        "gelu": F.gelu(x),
    }
    for name, expected in known.items():
        if callable(function) and torch.allclose(function(x), expected, atol=1e-6):
            return name
    raise NotLlamaStyle("the activation is neither SiLU nor GELU")
