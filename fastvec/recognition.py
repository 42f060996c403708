"""Which decoders have Llama's skeleton, and where their weights go in it.

A layer is recognised by its parts, not by its name: which linear maps and norms it has says where they stand. What a
norm or an activation computes is found by trying it, how a layer attends by watching transformers' own forward. Then
both paths run the first layers, as many as show every kind, in float32: a decoder for which they differ runs through
transformers, as do all with other parts.

Shapes: T packed tokens, D hidden size, P positions, R rotary dimensions.
"""

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fastvec.decoder import Attending, Decoder, packed_attention, watched
from fastvec.fused import FusedDecoder, Layer, Linear, Norm
from fastvec.packed import Packed, pack
from fastvec_kernels import AttentionPlan, add_rms_norm, rms_norm

logger = logging.getLogger(__name__)

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
AGREEMENT = 1e-4  # how far the two paths may be apart in float32, relative to a state's norm
SAME_NORM = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
ANY, STILL = "any", "still"  # kinds of rotary tables: one for all layers, and of a layer that does not turn


class NotTheSkeleton(Exception):
    """This decoder has a part that the skeleton has not."""


def fuse(decoder: Decoder, positions: int) -> FusedDecoder | None:
    """The fast path of `decoder` for sequences of up to `positions` tokens, None where it has another skeleton.

    Fused weights take the place of the decoder's own, which become views of them. Run under `inference_mode`.
    """
    model = decoder.model
    try:
        seen = _watch(model)
        first = _layers_of_every_kind(model, seen)
        with _first_layers_in_float32(model, first):
            apart = _difference(model, _recognised(model, seen[:first], positions))
        if not apart <= AGREEMENT:
            raise NotTheSkeleton(f"the two paths are {apart:.2g} apart")
        return _recognised(model, seen, positions)
    except NotTheSkeleton as reason:
        logger.debug("%s runs through transformers: %s", model.config.model_type, reason)
        return None


def _layers_of_every_kind(model: Any, seen: Sequence[Attending]) -> int:
    """The length of the shortest run of first layers in which each way to attend and to turn occurs."""
    kinds = [
        (how.heads, how.kv_heads, how.scale, how.window, how.softcap, how.sinks is None, kind)
        for how, kind in zip(seen, _rotary_kinds(model), strict=True)
    ]
    return max(kinds.index(kind) for kind in kinds) + 1


@contextmanager
def _first_layers_in_float32(model: Any, count: int) -> Iterator[None]:
    """Cut the model to its first layers, widened; the weights come back as they were."""
    whole = model.layers
    model.layers = whole[:count]
    parameters = [*model.layers.parameters(), *model.norm.parameters()]
    before = [parameter.data for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.data = parameter.data.float()
        yield
    finally:
        for parameter, data in zip(parameters, before, strict=True):
            parameter.data = data
        model.layers = whole


def _watch(model: Any) -> list[Attending]:
    """How each layer attends; raises NotTheSkeleton unless the model is a plain row of layers that attend once."""
    parts = {"embed_tokens", "layers", "norm", "rotary_emb"}
    _only(model, parts, needed=parts)
    _norm(model.norm)
    for layer in model.layers:
        _only(layer, LAYER_PARTS, needed={"self_attn", "mlp"})
    with watched() as seen:
        _states(model, *_trial(model))
    if len(seen) != len(model.layers):
        raise NotTheSkeleton(f"{len(seen)} attentions in {len(model.layers)} layers")
    return seen


def _recognised(model: Any, seen: Sequence[Attending], positions: int) -> FusedDecoder:
    """The fast path of a model whose layers attend as was `seen`."""
    kinds = _rotary_kinds(model)
    order = list(dict.fromkeys(kinds))
    layers = [
        _layer(layer, attending, order.index(kind))
        for layer, attending, kind in zip(model.layers, seen, kinds, strict=True)
    ]
    return FusedDecoder(
        model.embed_tokens,
        float(getattr(model, "embedding_multiplier", 1.0)),
        layers,
        [_table(model, kind, positions) for kind in order],
        _norm(model.norm),
    )


def _layer(layer: Any, attending: Attending, rotary: int) -> Layer:
    attn, mlp = layer.self_attn, layer.mlp
    joined_qkv, joined_gate_up = hasattr(attn, "qkv_proj"), hasattr(mlp, "gate_up_proj")
    _only(
        attn, ATTENTION_PARTS, needed={"o_proj", "qkv_proj"} if joined_qkv else {"q_proj", "k_proj", "v_proj", "o_proj"}
    )
    _only(
        mlp,
        MLP_PARTS,
        needed={"down_proj", "gate_up_proj"} if joined_gate_up else {"gate_proj", "up_proj", "down_proj"},
    )
    sandwich = hasattr(layer, "pre_feedforward_layernorm")
    after_only = hasattr(layer, "post_feedforward_layernorm") and not sandwich
    norms = {name: _norm(module) for name, module in layer.named_children() if name.endswith("layernorm")}
    middle = norms.get("post_attention_layernorm")
    q_norm, k_norm = (_norm(getattr(attn, name)) if hasattr(attn, name) else None for name in ("q_norm", "k_norm"))
    if (q_norm is None) != (k_norm is None) or (q_norm and k_norm and q_norm.eps != k_norm.eps):
        raise NotTheSkeleton("queries are normed and keys are not, or otherwise")
    qkv = [attn.qkv_proj] if joined_qkv else [attn.q_proj, attn.k_proj, attn.v_proj]
    gate_up = [mlp.gate_up_proj] if joined_gate_up else [mlp.gate_proj, mlp.up_proj]
    return Layer(
        heads=attending.heads,
        kv_heads=attending.kv_heads,
        qkv=_joined(qkv),
        q_norm=q_norm,
        k_norm=k_norm,
        rotary=rotary,
        attending=attending,
        output=_joined([attn.o_proj]),
        gate_up=_joined(gate_up),
        activation=_activation(getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None)),
        down=_joined([mlp.down_proj]),
        before_attention=norms.get("input_layernorm"),
        after_attention=middle if sandwich or after_only else None,
        before_mlp=norms.get("pre_feedforward_layernorm") if sandwich or after_only else middle,
        after_mlp=norms.get("post_feedforward_layernorm"),
        scale=float(getattr(layer, "residual_multiplier", 1.0)),
    )


def _only(module: Any, parts: set[str], *, needed: set[str]) -> None:
    """Raise NotTheSkeleton where `module` lacks a child, has one of another name, or a parameter of its own."""
    children = {name for name, _ in module.named_children()}
    if missing := needed - children:
        raise NotTheSkeleton(f"{type(module).__name__} has no {', '.join(sorted(missing))}")
    others = children - parts
    others |= {name for name, _ in module.named_parameters(recurse=False)}
    if others:
        raise NotTheSkeleton(f"{type(module).__name__} has {', '.join(sorted(others))}")


def _joined(linears: Sequence[nn.Linear]) -> Linear:
    """Linear maps of one input as one map; theirs become views of its weights."""
    if not all(type(one) is nn.Linear for one in linears):
        raise NotTheSkeleton(f"{type(linears[0]).__name__} is no plain linear map")
    if len(linears) == 1:
        return Linear(linears[0].weight, linears[0].bias)
    weight = torch.cat([one.weight for one in linears])
    for one, view in zip(linears, torch.split(weight, [len(one.weight) for one in linears]), strict=True):
        one.weight.data = view
    biases: list[torch.Tensor] = [one.bias for one in linears if one.bias is not None]
    if biases and len(biases) < len(linears):
        raise NotTheSkeleton("some maps of one input have a bias and others have none")
    return Linear(weight, torch.cat(biases) if biases else None)


def _norm(module: Any) -> Norm:
    """The RMSNorm that `module` computes, by what it makes of random numbers; raises NotTheSkeleton for another."""
    weight = getattr(module, "weight", None)
    eps = next((getattr(module, name) for name in ("variance_epsilon", "eps") if hasattr(module, name)), None)
    if not isinstance(weight, torch.Tensor) or not isinstance(eps, float):
        raise NotTheSkeleton(f"{type(module).__name__} is no RMSNorm")
    x = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    expected = module(x).float()
    for scale in (weight, 1 + weight.float()):
        found = rms_norm(x, scale, eps).float()
        if (found - expected).norm() <= SAME_NORM[weight.dtype] * expected.norm():
            return Norm(scale, eps)
    raise NotTheSkeleton(f"{type(module).__name__} is no RMSNorm")


def _activation(function: Any) -> str:
    x = torch.linspace(-4, 4, 65)
    known = {"silu": F.silu(x), "gelu_tanh": F.gelu(x, approximate="tanh"), "gelu": F.gelu(x)}
    for name, expected in known.items():
        if callable(function) and torch.allclose(function(x), expected, atol=1e-6):
            return name
    raise NotTheSkeleton("its activation is neither SiLU nor GELU")


def _rotary_kinds(model: Any) -> list[str]:
    """What tells a layer's table from another's: its type where rotary_emb asks for one, and whether it turns."""
    asks = "layer_type" in inspect.signature(model.rotary_emb.forward).parameters
    types = model.config.layer_types[: len(model.layers)] if asks else [ANY] * len(model.layers)
    return [
        kind if getattr(layer.self_attn, "use_rope", True) else STILL
        for layer, kind in zip(model.layers, types, strict=True)
    ]


def _table(model: Any, kind: str, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of half of the rotary dimensions, whose second half repeats the first: [P, R / 2]."""
    device = model.norm.weight.device
    if kind == STILL:
        return torch.ones(positions, 1, device=device), torch.zeros(positions, 1, device=device)
    ids = torch.arange(positions, device=device)[None]
    x = torch.empty(1, 1, device=device)  # tells device and dtype
    pair = model.rotary_emb(x, ids) if kind == ANY else model.rotary_emb(x, ids, kind)
    cos, sin = (half[0].float()[:, : half.shape[-1] // 2].contiguous() for half in pair)
    return cos, sin


def _trial(model: Any) -> tuple[torch.Tensor, Packed]:
    """Random embeddings [T, D] of two sequences, in the layers' dtype."""
    packed = pack([np.zeros(12, dtype=np.int32), np.zeros(5, dtype=np.int32)], device=model.device)
    width, weight = model.config.hidden_size, model.norm.weight
    embeddings = torch.randn(17, width, generator=torch.Generator().manual_seed(0))
    return embeddings.to(weight.device, weight.dtype), packed


def _states(model: Any, embeddings: torch.Tensor, packed: Packed) -> torch.Tensor:
    """What transformers makes of them [T, D]."""
    with packed_attention(AttentionPlan.build(packed.lengths, embeddings.device)):
        output = model(inputs_embeds=embeddings[None], position_ids=packed.positions[None], use_cache=False)
    states: torch.Tensor = output.last_hidden_state[0]
    return states


def _difference(model: Any, fused: FusedDecoder) -> float:
    """The largest distance of a token's two states, relative to their norm."""
    embeddings, packed = _trial(model)
    x, residual = fused.run(embeddings, packed)
    found = add_rms_norm(x, residual, fused.norm.weight, fused.norm.eps)[0]
    expected = _states(model, embeddings, packed)
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
