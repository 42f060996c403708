"""Load decoders of the plain Llama layout from their files directly into the fused path, without transformers.

Importing transformers' models takes longer than embedding a few thousand short texts. Llama, Mistral, Qwen2 and Qwen3
need it neither for detection nor to run: every setting in `config.json` must be on a list of known ones, and the
tensors must be exactly those it asks for. Everything else, e.g. an adapter or RoPE scaling for long contexts, is left
to transformers (`from_transformers`, `detection`), which also reports what is wrong with a checkpoint.

Shapes: D hidden size, H and KV heads of size d, P positions.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import nn

from fastvec.checkpoints.checkpoint import Checkpoint
from fastvec.checkpoints.model_files import read_json, weight_files
from fastvec.decoders.fused import AttentionSettings, FusedDecoder
from fastvec.decoders.llama_layers import NotLlamaStyle, layer_of, norm_of
from fastvec.system.memory import is_out_of_memory
from fastvec.texts.packing import Packed

COUNTS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_hidden_layers",
    "vocab_size",
)
# Settings that do not affect the hidden states, whatever their value. `max_window_layers` would matter only with a
# sliding window, which the plain layout does not have.
IGNORED = {
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "is_causal",
    "max_position_embeddings",
    "max_window_layers",
    "pad_token_id",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_bidirectional_attention",
    "use_cache",
}
# Settings with the values allowed in the plain layout, the default first.
PLAIN: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "pretraining_tp": (1,),
    "rope_scaling": (None,),
    "use_sliding_window": (False,),
}
ALL_FOUR = ("q_proj", "k_proj", "v_proj", "o_proj")
LEAST_POSITIONS = 8  # longest sequence of `self_check`


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The settings in config.json of a decoder of the plain layout."""

    family: str
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head: int
    layers: int
    vocabulary: int
    eps: float
    theta: float
    attention_biases: tuple[str, ...]
    mlp_bias: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Read `config`; raise NotLlamaStyle for another layout, an unknown setting, or a missing size, eps or base."""
        family, rest = config.get("model_type"), {name: config[name] for name in config if name not in IGNORED}
        if family not in ("llama", "mistral", "qwen2", "qwen3"):
            raise NotLlamaStyle(f"model type {family} is not of the plain Llama layout")
        del rest["model_type"]
        for name, values in PLAIN.items():
            if rest.pop(name, values[0]) not in values:
                raise NotLlamaStyle(f"{name} is {config[name]!r}")
        kinds = rest.pop("layer_types", None) or ["full_attention"]
        if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
            raise NotLlamaStyle("some layers use sliding-window attention")
        window = rest.pop("sliding_window", "absent")
        if family == "mistral" and window is not None:
            raise NotLlamaStyle("all layers use sliding-window attention")
        hidden, intermediate, heads, kv_heads, layers, vocabulary = (_number(rest, name, int) for name in COUNTS)
        head = _number(rest, "head_dim", int) if family == "qwen3" or "head_dim" in rest else hidden // heads
        eps, theta = float(_number(rest, "rms_norm_eps", float)), _theta(rest)
        biases: tuple[str, ...] = ALL_FOUR[:3] if family == "qwen2" else ()
        if family in ("llama", "qwen3") and rest.pop("attention_bias", False):
            biases = ALL_FOUR
        shape = cls(
            family=family,
            hidden=hidden,
            intermediate=intermediate,
            heads=heads,
            kv_heads=kv_heads,
            head=head,
            layers=layers,
            vocabulary=vocabulary,
            eps=eps,
            theta=theta,
            attention_biases=biases,
            mlp_bias=bool(rest.pop("mlp_bias", False)) if family == "llama" else False,
        )
        if rest:
            raise NotLlamaStyle(f"unknown settings {', '.join(sorted(rest))}")
        return shape


def _number(settings: dict[str, Any], name: str, kind: type) -> Any:
    value = settings.pop(name, None)
    if type(value) not in (int, kind) or not value > 0:
        raise NotLlamaStyle(f"{name} is {value!r}")
    return value


def _theta(settings: dict[str, Any]) -> float:
    """Return the base of the rotary frequencies; older configurations have `rope_theta` at the top level."""
    rope = settings.pop("rope_parameters", None)
    if rope is None:
        return float(_number(settings, "rope_theta", float))
    settings.pop("rope_theta", None)
    if not isinstance(rope, dict) or rope.get("rope_type") != "default" or rope.keys() != {"rope_type", "rope_theta"}:
        raise NotLlamaStyle(f"rope_parameters is {rope!r}")
    return float(_number(dict(rope), "rope_theta", float))


class PlainDecoder:
    """A decoder of the plain layout over packed batches: `packed_transformers.Decoder` without transformers.

    `model` has the weights under transformers' names. `fuse` builds the fused path from them; call it again after
    their dtype has changed.
    """

    longest: int | None = None  # default rotary positions have no limit

    def __init__(self, model: nn.Module, shape: Shape, *, bidirectional: bool, positions: int) -> None:
        self.model = model
        self.bidirectional = bidirectional
        self.family, self.vocabulary = shape.family, shape.vocabulary
        self._shape, self._positions = shape, max(positions, LEAST_POSITIONS)
        self._joined: FusedDecoder | None = None  # built by the first call, kept until `fuse` returns it

    @property
    def device(self) -> torch.device:
        return self.embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embeddings.dtype

    @property
    def embeddings(self) -> torch.Tensor:
        """The token embedding table [V, D]."""
        table: torch.Tensor = self.model.embed_tokens.weight  # type: ignore[assignment, union-attr]
        return table

    def fuse(self) -> FusedDecoder:
        joined, self._joined = self._joined or self._join(), None
        return joined

    def _join(self) -> FusedDecoder:
        model: Any = self.model
        shape = self._shape
        how = AttentionSettings(
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            scale=shape.head**-0.5,
            causal=not self.bidirectional,
            window=None,
            softcap=None,
            sinks=None,
        )
        return FusedDecoder(
            model.embed_tokens,
            1.0,
            [layer_of(layer, how, rotary=0) for layer in model.layers],
            [_table(shape.theta, shape.head, self._positions, self.device)],
            norm_of(model.norm),
        )

    def __call__(self, packed: Packed) -> torch.Tensor:
        """Return the hidden states [T, D] after the final norm."""
        self._joined = self._joined or self._join()
        return self._joined.states(packed)


def decoder_from_files(
    checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device | str, bidirectional: bool, positions: int
) -> PlainDecoder | None:
    """Load the decoder for sequences of up to `positions` tokens; return None if it needs transformers."""
    if checkpoint.adapters:
        return None
    try:
        shape = Shape.of(read_json(checkpoint.base / "config.json"))
        tensors: dict[str, torch.Tensor] = {}
        for file in weight_files(checkpoint.base):
            for name, tensor in load_file(file).items():
                tensors[name.removeprefix("model.")] = tensor.to(device=device, dtype=dtype)
        tensors.pop("lm_head.weight", None)
        model = _empty_model(shape)
        model.load_state_dict(tensors, assign=True)
        model.requires_grad_(False).eval()
        return PlainDecoder(model, shape, bidirectional=bidirectional, positions=positions)
    except (NotLlamaStyle, RuntimeError) as error:  # RuntimeError: mismatched tensors, or a GPU out of memory
        if is_out_of_memory(error):  # other vectors, because memory was short now, would be a surprise
            raise
        return None


def _empty_model(shape: Shape) -> nn.Module:
    """Build modules under transformers' names: parameters without storage, containers without a forward.

    The context manager `torch.device("meta")`, or initializing an embedding on that device, would import torch's
    compiler, which takes a second.
    """
    norm = functools.partial(nn.RMSNorm, eps=shape.eps, device="meta")
    linear = functools.partial(nn.Linear, device="meta")
    attention = {
        "q_proj": (shape.hidden, shape.heads * shape.head),
        "k_proj": (shape.hidden, shape.kv_heads * shape.head),
        "v_proj": (shape.hidden, shape.kv_heads * shape.head),
        "o_proj": (shape.heads * shape.head, shape.hidden),
    }
    mlp = {
        "gate_proj": (shape.hidden, shape.intermediate),
        "up_proj": (shape.hidden, shape.intermediate),
        "down_proj": (shape.intermediate, shape.hidden),
    }
    head_norms = ("q_norm", "k_norm") if shape.family == "qwen3" else ()
    layers = [
        _node(
            self_attn=_node(
                **{name: linear(*sizes, bias=name in shape.attention_biases) for name, sizes in attention.items()},
                **{name: norm(shape.head) for name in head_norms},
            ),
            mlp=_node(**{name: linear(*sizes, bias=shape.mlp_bias) for name, sizes in mlp.items()}, act_fn=nn.SiLU()),
            input_layernorm=norm(shape.hidden),
            post_attention_layernorm=norm(shape.hidden),
        )
        for _ in range(shape.layers)
    ]
    embeddings: nn.Embedding = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
        torch.empty(shape.vocabulary, shape.hidden, device="meta")
    )
    return _node(embed_tokens=embeddings, layers=nn.ModuleList(layers), norm=norm(shape.hidden))


def _node(**children: nn.Module) -> nn.Module:
    node = nn.Module()
    for name, child in children.items():
        node.add_module(name, child)
    return node


def _table(theta: float, size: int, positions: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosine and sine [P, d / 2] of every position times θ^(−2i/d) (Su et al., 2021)."""
    frequencies = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
    angles = torch.arange(positions).float()[:, None] * frequencies
    return angles.cos().to(device), angles.sin().to(device)
