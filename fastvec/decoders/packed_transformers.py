"""Run any supported transformers decoder over packed sequences, bidirectional or causal.

A transformers decoder calls two registered functions: one makes the mask of each kind of layer, one attends. fastvec's
mask function makes no tensor. It returns a `PackedMask`, which says how the row is split into sequences, whether
attention looks ahead, and how far. transformers passes it to the attention function as `attention_mask`, for three
reasons: no family drops that argument (stablelm and nemotron drop keyword arguments), gradient checkpointing keeps it
for the second forward, and it has the window of each layer, which phimoe and qwen2_moe write only into the mask. A
family that computes with its mask raises an error.

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
from fastvec.decoders.fused import AttentionSettings
from fastvec.errors import ModelError
from fastvec.texts.packing import Packed
from fastvec_kernels import AttentionPlan, attention

ATTENTION = "fastvec"  # transformers dispatches on the substrings "sdpa", "flash" and "/", so the name has none of them
# keyword arguments that do not affect attention, or repeat the mask
HARMLESS = {"position_ids", "use_cache", "sliding_window", "output_attentions"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """The dropout of one training forward: a function of `seed` and of `numbers` [n], which identify the sequences."""

    seed: int
    numbers: Sequence[int]
    attention_dropout: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedMask:
    """What the tokens of a layer may attend to, used instead of a mask tensor."""

    plan: AttentionPlan
    causal: bool
    window: int | None  # bidirectional |i − j| ≤ window, causal 0 ≤ i − j < window
    noise: Noise | None = None

    def __getitem__(self, index: tuple[slice, ...]) -> "PackedMask":
        """Accept only slices that keep everything: gemma4_text slices its mask even when it needs all tokens."""
        if any(part not in (slice(None), slice(0, None)) for part in index):
            raise ModelError(f"the mask of a packed row cannot be sliced by {index}")
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    plan: AttentionPlan
    noise: Noise | None


_batch: ContextVar[_Batch] = ContextVar("fastvec_batch")
_seen: ContextVar[list[AttentionSettings] | None] = ContextVar("fastvec_seen", default=None)


@contextmanager
def record_attention() -> Iterator[list[AttentionSettings]]:
    """Record how each layer attends in this block: a list that grows, in the order of the calls."""
    seen: list[AttentionSettings] = []
    token = _seen.set(seen)
    try:
        yield seen
    finally:
        _seen.reset(token)


@contextmanager
def packed_attention(plan: AttentionPlan, noise: Noise | None = None) -> Iterator[None]:
    """Make forwards in this block treat their one row of T tokens as the sequences of `plan`, with dropout `noise`."""
    token = _batch.set(_Batch(plan=plan, noise=noise))
    try:
        yield
    finally:
        _batch.reset(token)


def forward_packed(model: torch.nn.Module, packed: Packed, noise: Noise | None = None) -> torch.Tensor:
    """Return the hidden states [T, hidden_size] after the final norm of a model set up by `Decoder`, wrapped or not."""
    numbers = None if noise is None else noise.numbers
    plan = AttentionPlan.build(packed.lengths, packed.token_ids.device, sequence_ids=numbers)
    with packed_attention(plan, noise):
        output = model(input_ids=packed.token_ids[None], position_ids=packed.positions[None], use_cache=False)
    hidden: torch.Tensor = output.last_hidden_state[0]
    return hidden


class Decoder:
    """A transformers decoder without its LM head, over packed batches.

    `longest` is the maximum number of tokens in a sequence, or None if the positions set no limit. Learned positions
    end, and some rotary ones (dynamic, longrope) change for the whole batch as soon as one of its sequences is longer.
    """

    def __init__(self, model: PreTrainedModel, *, bidirectional: bool) -> None:
        """Modify `model`, as AutoModel returns it: fastvec's attention, and `is_causal` in its config.

        Raises ModelError for an unsupported family.
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
        """The token embedding table [V, D]."""
        table: torch.Tensor = self.model.get_input_embeddings().weight  # type: ignore[assignment]
        return table

    @property
    def hidden_size(self) -> int:
        """The width of the hidden states; facebook/opt-350m projects them to a smaller width at the end."""
        return int(getattr(self.model.config, "word_embed_proj_dim", self.model.config.hidden_size))

    def __call__(self, packed: Packed) -> torch.Tensor:
        """Return the hidden states [T, hidden_size] after the final norm, under the caller's grad mode.

        Raises ModelError for a sequence of more than `longest` tokens.
        """
        if self.longest is not None and max(packed.lengths) > self.longest:
            raise ModelError(
                f"a text has {max(packed.lengths)} tokens: the positions of this {self.model.config.model_type} model "
                f"allow at most {self.longest}; lower max_length to that"
            )
        return forward_packed(self.model, packed)


def _longest(config: PretrainedConfig) -> int | None:
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict):
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
    """Return the mask of one kind of layer, for transformers; `local_size` is that kind's window.

    Raises ModelError outside of `packed_attention`, with padding, or for a mask rule that cannot run.
    """
    batch = _batch.get(None)
    if batch is None:
        raise ModelError("this model runs only on packed sequences: call it through fastvec's Decoder")
    if attention_mask is not None and not attention_mask.all():
        raise ModelError(
            f"a padding mask {tuple(attention_mask.shape)} came with packed sequences, which have no padding"
        )
    causal = bool(getattr(config, "is_causal", True))
    if use_vmap:  # the family adds its own rule to the mask
        if causal or not getattr(config, "use_bidirectional_attention", False):
            raise ModelError(f"this {config.model_type} checkpoint has its own mask rule, which cannot run causal")
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
    """Attend, for every layer: query [1, H, T, D], key and value with their own number of heads -> [1, T, H, D].

    Raises ModelError for a mask that is not a PackedMask of one row, a contradicting `is_causal`, an unknown argument,
    or dropout.
    """
    layer = type(module).__name__
    if not isinstance(attention_mask, PackedMask) or len(query) != 1:
        found = f"a {type(attention_mask).__name__} mask over {len(query)} rows"
        raise ModelError(f"{layer} attends with {found}; expected the PackedMask of one packed row")
    if is_causal is not None and is_causal != attention_mask.causal:
        raise ModelError(f"{layer} asks for is_causal={is_causal}, but its mask has causal={attention_mask.causal}")
    if unknown := [name for name, given in others.items() if given is not None and name not in HARMLESS]:
        raise ModelError(f"{layer} attends with unsupported arguments: {', '.join(unknown)}")
    if dropout:
        raise ModelError(f"{layer} uses attention dropout {dropout}: set it to 0, or call model.eval()")
    query, key, value = (x[0].transpose(0, 1) for x in _in_one_dtype(query, key, value))
    noise = attention_mask.noise
    p = 0.0 if noise is None else noise.attention_dropout
    how = AttentionSettings(
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
        seed=0 if noise is None or not p else _odd_seed(noise.seed, getattr(module, "layer_idx", 0)),
    )
    return output[None], None


def _in_one_dtype(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cast to the autocast dtype: autocast does not know this operation, and rotary embeddings widen query and key."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


def _odd_seed(seed: int, layer: int) -> int:
    """Return a layer's seed, never a multiple of 16, for which Triton would compile a kernel again."""
    return derived_seed(seed, "attention", layer) | 1


def derived_seed(*parts: object) -> int:
    """Return a seed from 0 to 2^63 − 1 that is a hash of `parts`, e.g. a user's seed, a step, a layer."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, _describe_mask)
