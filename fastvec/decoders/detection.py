"""Detect Llama-style decoders among transformers models, and build the fused path from their weights.

A layer is recognized by its parts, not by its name: the linear maps and norms it has determine where each one goes.
What a norm or an activation computes is found by running it; how a layer attends, by recording transformers' own
forward. Then both paths run the first layers in float32, as many as it takes to include every kind of layer. If the
results differ, or if the model has any other part, the decoder runs through transformers.

Shapes: T packed tokens, D hidden size, P positions, R rotary dimensions.
"""

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fastvec.decoders.fused import AttentionSettings, FusedDecoder
from fastvec.decoders.llama_layers import LAYER_PARTS, NotLlamaStyle, layer_of, norm_of, require_parts
from fastvec.decoders.packed_transformers import Decoder, packed_attention, record_attention
from fastvec.texts.packing import Packed, pack
from fastvec_kernels import AttentionPlan

logger = logging.getLogger(__name__)

AGREEMENT = 1e-4  # largest distance between the two paths in float32, relative to a hidden state's norm
TRIAL = (12, 5)  # lengths in tokens of the two trial sequences; the second has the last positions
ANY, UNROTATED = "any", "unrotated"  # kinds of rotary tables: one for all layers, or no rotation


def fuse(decoder: Decoder, positions: int) -> FusedDecoder | None:
    """Return the fused path of `decoder` for sequences of up to `positions` tokens, or None if it is not Llama-style.

    The decoder's own weights become views of the fused weights. Call it under `inference_mode`.
    """
    model, positions = decoder.model, max(positions, *TRIAL)
    try:
        seen = _record_attention(model, positions)
        first = _layers_of_every_kind(model, seen)
        with _first_layers_in_float32(model, first):
            apart = _difference(model, _build_fused(model, seen[:first], positions), positions)
        if not apart <= AGREEMENT:
            raise NotLlamaStyle(f"the fused path differs from transformers by {apart:.2g}")
        return _build_fused(model, seen, positions)
    except NotLlamaStyle as reason:
        logger.debug("%s runs through transformers: %s", model.config.model_type, reason)
        return None


def _layers_of_every_kind(model: Any, seen: Sequence[AttentionSettings]) -> int:
    """Return how many first layers it takes to include every combination of attention settings and rotary table."""
    kinds = [
        (how.heads, how.kv_heads, how.scale, how.window, how.softcap, how.sinks is None, kind)
        for how, kind in zip(seen, _rotary_kinds(model), strict=True)
    ]
    return max(kinds.index(kind) for kind in kinds) + 1


@contextmanager
def _first_layers_in_float32(model: Any, count: int) -> Iterator[None]:
    """Truncate the model to its first `count` layers, in float32, and restore layers and weights afterwards."""
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


def _record_attention(model: Any, positions: int) -> list[AttentionSettings]:
    """Return how each layer attends; raise NotLlamaStyle unless the model is a stack of layers that attend once."""
    parts = {"embed_tokens", "layers", "norm", "rotary_emb"}
    require_parts(model, parts, needed=parts)
    norm_of(model.norm)
    for layer in model.layers:
        require_parts(layer, LAYER_PARTS, needed={"self_attn", "mlp"})
    with record_attention() as seen:
        _states(model, *_trial(model, positions))
    if len(seen) != len(model.layers):
        raise NotLlamaStyle(f"{len(seen)} attention calls in {len(model.layers)} layers")
    return seen


def _build_fused(model: Any, seen: Sequence[AttentionSettings], positions: int) -> FusedDecoder:
    """Build the fused path of a model whose layers attend as recorded in `seen`."""
    kinds = _rotary_kinds(model)
    order = list(dict.fromkeys(kinds))
    layers = [
        layer_of(layer, attending, rotary=order.index(kind))
        for layer, attending, kind in zip(model.layers, seen, kinds, strict=True)
    ]
    return FusedDecoder(
        model.embed_tokens,
        float(getattr(model, "embedding_multiplier", 1.0)),
        layers,
        [_table(model, kind, positions) for kind in order],
        norm_of(model.norm),
    )


def _rotary_kinds(model: Any) -> list[str]:
    """Return the rotary table each layer uses: that of its type if rotary_emb asks for one, or UNROTATED."""
    asks = "layer_type" in inspect.signature(model.rotary_emb.forward).parameters
    types = model.config.layer_types[: len(model.layers)] if asks else [ANY] * len(model.layers)
    return [
        kind if getattr(layer.self_attn, "use_rope", True) else UNROTATED
        for layer, kind in zip(model.layers, types, strict=True)
    ]


def _table(model: Any, kind: str, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosine and sine [P, R / 2] of the first half of the rotary dimensions; the second half repeats them."""
    device = model.norm.weight.device
    if kind == UNROTATED:
        return torch.ones(positions, 1, device=device), torch.zeros(positions, 1, device=device)
    ids = torch.arange(positions, device=device)[None]
    x = torch.empty(1, 1, device=device)  # rotary_emb takes only its device and dtype
    pair = model.rotary_emb(x, ids) if kind == ANY else model.rotary_emb(x, ids, kind)
    cos, sin = (half[0].float()[:, : half.shape[-1] // 2].contiguous() for half in pair)
    return cos, sin


def _trial(model: Any, positions: int) -> tuple[torch.Tensor, Packed]:
    """Return random embeddings [T, D] of the two trial sequences, in the layers' dtype, and their packed batch.

    The first sequence has the first of `positions`, the second the last: some decoders scale queries by position, with
    a scale of 1 for the first thousands.
    """
    packed = pack([np.zeros(length, dtype=np.int32) for length in TRIAL], device=model.device)
    packed.positions[-TRIAL[-1] :] += positions - TRIAL[-1]
    width, weight = model.config.hidden_size, model.norm.weight
    embeddings = torch.randn(sum(TRIAL), width, generator=torch.Generator().manual_seed(0))
    return embeddings.to(weight.device, weight.dtype), packed


def _states(model: Any, embeddings: torch.Tensor, packed: Packed) -> torch.Tensor:
    """Return the hidden states [T, D] that transformers computes from `embeddings` [T, D]."""
    with packed_attention(AttentionPlan.build(packed.lengths, embeddings.device)):
        output = model(inputs_embeds=embeddings[None], position_ids=packed.positions[None], use_cache=False)
    states: torch.Tensor = output.last_hidden_state[0]
    return states


def _difference(model: Any, fused: FusedDecoder, positions: int) -> float:
    """Return the largest distance between the two paths' states of a token, relative to transformers' state."""
    embeddings, packed = _trial(model, positions)
    found = fused.states(packed, embeddings)
    expected = _states(model, embeddings, packed)
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
