"""Any supported transformers decoder, run over packed sequences, bidirectional or causal.

A decoder asks two registered functions: one makes the mask of each kind of layer, one attends.
Ours makes no tensor: it returns a `PackedMask`, which says how the row is cut into sequences, whether to look ahead,
and how far. transformers carries it down to the attention function as `attention_mask`, the one argument that no
family drops (stablelm and nemotron drop keyword arguments) and that gradient checkpointing keeps for the second
forward; and it holds each layer's own window, which phimoe and qwen2_moe write nowhere but into the mask.
A family that computes with its mask fails on it loudly.

Shapes: T packed tokens, n sequences, H heads, D head size.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel

from fastvec.checkpoints.families import require_supported
from fastvec.decoders.fused import Attending
from fastvec.errors import ModelError
from fastvec.texts.packing import Packed
from fastvec_kernels import AttentionPlan, attention

ATTENTION = "fastvec"  # a name holding "sdpa", "flash" or "/" would be dispatched on by substring
# keyword arguments that say nothing about what is attended to, or repeat what the mask says
HARMLESS = {"position_ids", "use_cache", "sliding_window", "output_attentions"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """What training drops in one forward: a function of `seed` and of the `numbers` [n] its sequences are known by."""

    seed: int
    numbers: Sequence[int]
    attention_dropout: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedMask:
    """What the tokens of a layer may see, in place of a mask tensor."""

    plan: AttentionPlan
    causal: bool
    window: int | None  # bidirectional |i − j| ≤ window, causal 0 ≤ i − j < window
    noise: Noise | None = None

    def __getitem__(self, index: tuple[slice, ...]) -> "PackedMask":
        """gemma4_text cuts its mask to the tokens whose logits are wanted, also where all are."""
        if any(part not in (slice(None), slice(0, None)) for part in index):
            raise ModelError(f"a packed row is attended to as a whole, not by {index}")
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    plan: AttentionPlan
    noise: Noise | None


_batch: ContextVar[_Batch] = ContextVar("fastvec_batch")
_seen: ContextVar[list[Attending] | None] = ContextVar("fastvec_seen", default=None)


@contextmanager
def watched() -> Iterator[list[Attending]]:
    """What the layers do in this block, in their order, in a list that grows."""
    seen: list[Attending] = []
    token = _seen.set(seen)
    try:
        yield seen
    finally:
        _seen.reset(token)


@contextmanager
def packed_attention(plan: AttentionPlan, noise: Noise | None = None) -> Iterator[None]:
    """Forwards in this block read their one row of T tokens as the sequences of `plan`, and drop as `noise` says."""
    token = _batch.set(_Batch(plan=plan, noise=noise))
    try:
        yield
    finally:
        _batch.reset(token)


def forward_packed(model: torch.nn.Module, packed: Packed, noise: Noise | None = None) -> torch.Tensor:
    """The states [T, hidden_size] after the final norm of a decoder that a `Decoder` took over, wrapped or not."""
    numbers = None if noise is None else noise.numbers
    plan = AttentionPlan.build(packed.lengths, packed.token_ids.device, sequence_ids=numbers)
    with packed_attention(plan, noise):
        output = model(input_ids=packed.token_ids[None], position_ids=packed.positions[None], use_cache=False)
    hidden: torch.Tensor = output.last_hidden_state[0]
    return hidden


class Decoder:
    """A transformers decoder without its LM head, over packed batches.

    `longest` is the most tokens a sequence may have, where the positions set a limit: learned ones end, and some
    rotary ones (dynamic, longrope) stretch for the whole batch as soon as one of its sequences is longer.
    """

    def __init__(self, model: PreTrainedModel, *, bidirectional: bool) -> None:
        """Take over `model`, as AutoModel gives it: its attention becomes ours, its config says whether it is causal.

        Raises ModelError for a family that does not run.
        """
        require_supported(model.config.model_type)
        model.set_attn_implementation(ATTENTION)
        model.config.is_causal = not bidirectional
        self.model = model
        self.bidirectional = bidirectional
        self.longest = _longest(model.config)

    @property
    def family(self) -> str:
        return str(self.model.config.model_type)

    @property
    def vocabulary(self) -> int:
        return int(self.model.config.vocab_size)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def embeddings(self) -> torch.Tensor:
        """The table [V, D] of the tokens."""
        table: torch.Tensor = self.model.get_input_embeddings().weight  # type: ignore[assignment]
        return table

    @property
    def hidden_size(self) -> int:
        """The width of the states; facebook/opt-350m projects them down at the end."""
        return int(getattr(self.model.config, "word_embed_proj_dim", self.model.config.hidden_size))

    def __call__(self, packed: Packed) -> torch.Tensor:
        """The hidden states [T, hidden_size] after the final norm, under the caller's grad mode.

        Raises ModelError for a sequence of more than `longest` tokens.
        """
        if self.longest is not None and max(packed.lengths) > self.longest:
            raise ModelError(
                f"a text of {max(packed.lengths)} tokens: the positions of this {self.model.config.model_type} model "
                f"hold for {self.longest}; a max_length of at most {self.longest} is needed"
            )
        return forward_packed(self.model, packed)


def _longest(config: PretrainedConfig) -> int | None:
    parameters = getattr(config, "rope_parameters", None)
    if parameters is None:
        return int(config.max_position_embeddings)
    by_layer_type = [p for p in parameters.values() if isinstance(p, dict)] or [parameters]
    limits = [
        int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
        for rope in by_layer_type
        if rope.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=None)


def _describe_mask(
    *,
    config: PretrainedConfig,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    **_: Any,
) -> PackedMask:
    """The mask function transformers calls for each kind of layer; `local_size` is that kind's window."""
    batch = _batch.get(None)
    if batch is None:
        raise ModelError("this model attends to packed sequences: call it through fastvec's Decoder")
    if attention_mask is not None and not attention_mask.all():
        raise ModelError(
            f"a padding mask {tuple(attention_mask.shape)} came with packed sequences, which have no padding"
        )
    causal = bool(getattr(config, "is_causal", True))
    if use_vmap:  # the family adds a rule of its own to the mask
        if causal or not getattr(config, "use_bidirectional_attention", False):
            raise ModelError(f"this {config.model_type} checkpoint has a mask of its own, which cannot run causal")
        # EmbeddingGemma's rule: |i − j| < window, one less than transformers' own bidirectional window
        local_size = None if local_size is None else local_size - 1
    return PackedMask(plan=batch.plan, causal=causal, window=local_size, noise=batch.noise)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function of every layer: query [1, H, T, D], key and value with their own heads -> [1, T, H, D]."""
    layer = type(module).__name__
    if not isinstance(attention_mask, PackedMask) or len(query) != 1:
        found = f"{type(attention_mask).__name__} mask and {len(query)} rows"
        raise ModelError(f"{layer} attends with a {found}, not the PackedMask of one packed row")
    if is_causal is not None and is_causal != attention_mask.causal:
        raise ModelError(f"{layer} asks for is_causal={is_causal}, its mask says {attention_mask.causal}")
    if unknown := [name for name, given in others.items() if given is not None and name not in HARMLESS]:
        raise ModelError(f"{layer} attends with {', '.join(unknown)}, which fastvec does not know")
    if dropout:
        raise ModelError(f"{layer} drops attention with probability {dropout}: set it to 0, or call model.eval()")
    query, key, value = (x[0].transpose(0, 1) for x in _in_one_dtype(query, key, value))
    noise = attention_mask.noise
    p = 0.0 if noise is None else noise.attention_dropout
    how = Attending(
        heads=query.shape[1],
        kv_heads=key.shape[1],
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        causal=attention_mask.causal,
        window=attention_mask.window,
        softcap=softcap,
        sinks=s_aux,
    )
    if (seen := _seen.get()) is not None:
        seen.append(how)
    output = attention(
        query,
        key,
        value,
        attention_mask.plan,
        scale=how.scale,
        causal=how.causal,
        window=how.window,
        softcap=how.softcap,
        sinks=how.sinks,
        dropout_p=p,
        seed=derived_seed(noise.seed, "attention", getattr(module, "layer_idx", 0)) if noise is not None and p else 0,
    )
    return output[None], None


def _in_one_dtype(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As autocast would have them: it casts for operations it knows, and rotary embeddings widen query and key."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


def derived_seed(*parts: object) -> int:
    """A seed from 0 to 2^63 − 1 that is a hash of `parts`: a user's seed, a step, a layer."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, _describe_mask)
