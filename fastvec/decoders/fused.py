"""The fused path: run a Llama-style decoder for inference, from the same weights, in fewer and larger operations.

    residual ← embed(tokens)
    each layer   q, k, v ← rope(norm(residual) · W_qkv)          one product; bias, head norms and rotation in one pass,
                                                                 for short sequences also attention
                 residual ← residual + attend(q, k, v) · W_o     the product adds to the residual, or the next norm does
                 residual ← residual + act(gate) · up · W_down   gate and up from norm(residual), in one product
    pooling computes the last sum, if no product has, and the final norm

`detection` decides which decoders are Llama-style; `llama_layers` maps the weights of their layers to this form.

Shapes: T packed tokens, D hidden size, H and KV heads of size d, F feed-forward size, P positions, R rotary dimensions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self, TypeGuard

import torch
import torch.nn.functional as F

from fastvec.texts.packing import Packed
from fastvec_kernels import (
    Activation,
    AttentionPlan,
    Fp8Rows,
    add_rms_norm,
    add_rms_norm_fp8,
    gated,
    gated_fp8,
    gated_linear,
    rms_norm,
    rms_norm_fp8,
    rope_attention,
)
from fastvec_kernels.attention.plan import Routes

# How many rows a feed-forward layer may take at a time on a CPU, so that gate and up stay in the caches until the next
# product reads them. All parts are equal, because oneDNN compiles a product for each number of rows and keeps few.
CPU_ROWS = range(640, 255, -64)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSettings:
    """The attention settings of a layer, read from its config or recorded from a forward."""

    heads: int
    kv_heads: int
    scale: float
    causal: bool
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None  # [heads]


@dataclass(frozen=True, slots=True)
class Norm:
    """x / rms(x) · weight [D]."""

    weight: torch.Tensor
    eps: float


class LinearMap(Protocol):
    """x · Wᵀ + bias, in any implementation. If it `takes_fp8`, x may be quantized rows, which it would make itself."""

    takes_fp8: ClassVar[bool]

    @property
    def bias(self) -> torch.Tensor | None: ...
    def product(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor:
        """Return x · Wᵀ without the bias."""

    def __call__(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Linear:
    """x · weightᵀ + bias, weight [out, in]."""

    takes_fp8: ClassVar[bool] = False

    weight: torch.Tensor
    bias: torch.Tensor | None

    def product(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor:
        return F.linear(floats(x), self.weight)

    def __call__(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor:
        return F.linear(floats(x), self.weight, self.bias)

    def add_product(self, residual: torch.Tensor, x: torch.Tensor) -> None:
        """Add the product of x, without the bias, to `residual` in place."""
        residual.addmm_(x, self.weight.t())

    def gated(self, x: torch.Tensor, activation: Activation) -> torch.Tensor:
        """Return the gated unit of the product of x; the weight contains gate, then up."""
        return gated_linear(x, self.weight, activation) if self.bias is None else gated(self(x), activation)


def floats(x: torch.Tensor | Fp8Rows) -> torch.Tensor:
    """Return `x`, the input of a linear map that does not take quantized rows."""
    if isinstance(x, Fp8Rows):
        raise TypeError("this linear map takes no quantized rows")
    return x


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """The weights of a layer and its settings; a norm that it lacks is None."""

    heads: int
    kv_heads: int
    qkv: LinearMap  # [(H + 2 KV) · d, D]; rope_attention adds its bias
    q_norm: Norm | None  # over one head [d], or over all heads at once [H · d]
    k_norm: Norm | None
    rotary: int  # index into the decoder's rotary tables
    attending: AttentionSettings
    output: LinearMap  # [D, H · d]
    gate_up: LinearMap  # [2F, D]
    activation: Activation
    down: LinearMap  # [D, F]
    before_attention: Norm | None
    after_attention: Norm | None
    before_mlp: Norm | None
    after_mlp: Norm | None
    scale: float  # factor of what the layer adds to the residual
    head_size: int  # d


class FusedDecoder:
    """A decoder from its embeddings up to, but without, the final norm, which is `norm`."""

    def __init__(
        self,
        embed: Callable[[torch.Tensor], torch.Tensor],
        embed_scale: float,
        layers: Sequence[Layer],
        tables: Sequence[tuple[torch.Tensor, torch.Tensor]],
        norm: Norm,
        routes: Routes | None = None,
    ) -> None:
        """`embed` maps token ids [T] to [T, D]; `tables` are the cosine and sine [P, R / 2] of every position.

        `routes` are those of attention on a CPU; None for the defaults.
        """
        self._embed, self._embed_scale = embed, embed_scale
        self.layers, self._tables = layers, tables
        self.norm = norm
        self._routes = routes

    @property
    def linear_bytes(self) -> int:
        """The bytes of the weights of all `Linear`s in the layers."""
        linears = (linear for one in self.layers for linear in (one.qkv, one.output, one.gate_up, one.down))
        return sum(linear.weight.nbytes for linear in linears if isinstance(linear, Linear))

    def with_linears(self, make: Callable[[torch.Tensor, torch.Tensor | None], LinearMap]) -> Self:
        """Return the same decoder with each `Linear` of its layers replaced by `make(weight, bias)`."""

        def made(linear: LinearMap) -> LinearMap:
            return make(linear.weight, linear.bias) if isinstance(linear, Linear) else linear

        layers = [
            replace(
                layer,
                qkv=made(layer.qkv),
                output=made(layer.output),
                gate_up=made(layer.gate_up),
                down=made(layer.down),
            )
            for layer in self.layers
        ]
        return type(self)(self._embed, self._embed_scale, layers, self._tables, self.norm, self._routes)

    def with_routes(self, routes: Routes) -> Self:
        """Return the same decoder with these routes of attention."""
        return type(self)(self._embed, self._embed_scale, self.layers, self._tables, self.norm, routes)

    def __call__(self, packed: Packed, tokens: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return (x, residual), [T, D] each; the hidden states are `norm` of their sum, or of x if residual is None.

        With `tokens` [n], indices on the device, only their rows are returned, and after its attention the last layer
        computes nothing for other tokens.
        """
        return self.run(self._embed(packed.token_ids), packed, tokens)

    def states(self, packed: Packed, embeddings: torch.Tensor | None = None) -> torch.Tensor:
        """Return the hidden states [T, D] after the final norm, of the tokens or of `embeddings` [T, D] instead."""
        x, residual = self(packed) if embeddings is None else self.run(embeddings.clone(), packed)
        if residual is None:
            return rms_norm(x, self.norm.weight, self.norm.eps)
        return add_rms_norm(x, residual, self.norm.weight, self.norm.eps)[0]

    def run(
        self, embeddings: torch.Tensor, packed: Packed, tokens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what a call returns, from the `embeddings` [T, D] of the tokens, which may be overwritten."""
        plan = AttentionPlan.build(packed.lengths, packed.token_ids.device, routes=self._routes)
        angles = [(cos[packed.positions], sin[packed.positions]) for cos, sin in self._tables]
        residual = embeddings if self._embed_scale == 1 else embeddings * self._embed_scale
        x: torch.Tensor | None = None  # the previous sublayer's output, not yet added to the residual
        for index, layer in enumerate(self.layers):
            normed, residual = _add_norm(x, residual, layer.before_attention, fp8=layer.qkv.takes_fp8)
            o = _attend(layer, normed, plan, angles)
            if tokens is not None and index == len(self.layers) - 1:
                o, residual = o[tokens], residual[tokens]
            x = _add_product(layer.output, o, residual, layer.after_attention, layer.scale)
            normed, residual = _add_norm(x, residual, layer.before_mlp, fp8=layer.gate_up.takes_fp8)
            x = _feed_forward(layer, normed, residual)
        return (residual, None) if x is None else (x, residual)


def _add_norm(
    x: torch.Tensor | None, residual: torch.Tensor, norm: Norm | None, *, fp8: bool
) -> tuple[torch.Tensor | Fp8Rows, torch.Tensor]:
    """Return the norm of x + residual, quantized if `fp8`, and that sum."""
    if norm is None:
        total = residual if x is None else x + residual
        return total, total
    if x is None:
        return (rms_norm_fp8 if fp8 else rms_norm)(residual, norm.weight, norm.eps), residual
    if fp8:
        values, scales, total = add_rms_norm_fp8(x, residual, norm.weight, norm.eps)
        return Fp8Rows(values, scales), total
    return add_rms_norm(x, residual, norm.weight, norm.eps)


def _add_product(
    linear: LinearMap, x: torch.Tensor | Fp8Rows, residual: torch.Tensor, norm: Norm | None, scale: float
) -> torch.Tensor | None:
    """Return what a sublayer adds to the residual; None if its last product was added to `residual` in place.

    The product can add it without another pass over both, unless a norm or a factor comes between.
    """
    if _adds_in_place(linear, residual, norm, scale):
        linear.add_product(residual, floats(x))
        return None
    y = linear(x)
    if norm is not None:
        y = rms_norm(y, norm.weight, norm.eps)
    return y if scale == 1 else y * scale


def _adds_in_place(linear: LinearMap, residual: torch.Tensor, norm: Norm | None, scale: float) -> TypeGuard[Linear]:
    return (
        isinstance(linear, Linear)
        and linear.bias is None
        and norm is None
        and scale == 1
        and residual.dtype == linear.weight.dtype
        and not torch.is_grad_enabled()
    )


def _attend(
    layer: Layer, x: torch.Tensor | Fp8Rows, plan: AttentionPlan, angles: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    qkv = layer.qkv.product(x)
    q_norm, k_norm = layer.q_norm, layer.k_norm
    size = layer.head_size
    if q_norm is not None and k_norm is not None and len(q_norm.weight) != size:
        ends = [layer.heads * size, (layer.heads + layer.kv_heads) * size]
        q, k, v = qkv.tensor_split(ends, dim=1)
        qkv = torch.cat([rms_norm(q, q_norm.weight, q_norm.eps), rms_norm(k, k_norm.weight, k_norm.eps), v], dim=1)
        q_norm = k_norm = None
    cos, sin = angles[layer.rotary]
    how = layer.attending
    o = rope_attention(
        qkv,
        cos,
        sin,
        plan,
        heads=layer.heads,
        kv_heads=layer.kv_heads,
        q_weight=None if q_norm is None else q_norm.weight,
        k_weight=None if k_norm is None else k_norm.weight,
        eps=1e-6 if q_norm is None else q_norm.eps,
        bias=layer.qkv.bias,
        scale=how.scale,
        causal=how.causal,
        window=how.window,
        softcap=how.softcap,
        sinks=how.sinks,
    )
    return o.flatten(1)


def _feed_forward(layer: Layer, x: torch.Tensor | Fp8Rows, residual: torch.Tensor) -> torch.Tensor | None:
    """Return what `_add_product` returns for the feed-forward sublayer, from its normed input."""
    down, norm, scale = layer.down, layer.after_mlp, layer.scale
    if isinstance(x, Fp8Rows) or x.device.type != "cpu" or not _adds_in_place(down, residual, norm, scale):
        return _add_product(down, _gated(layer, x), residual, norm, scale)
    rows = next((rows for rows in CPU_ROWS if len(x) % rows == 0), max(len(x), 1))
    for some, sums in zip(torch.split(x, rows), torch.split(residual, rows), strict=True):
        down.add_product(sums, floats(_gated(layer, some)))
    return None


def _gated(layer: Layer, x: torch.Tensor | Fp8Rows) -> torch.Tensor | Fp8Rows:
    """Return the gated unit of the feed-forward layer, quantized if its next product takes quantized rows."""
    if layer.down.takes_fp8:
        return gated_fp8(layer.gate_up(x), layer.activation)
    if isinstance(layer.gate_up, Linear):
        return layer.gate_up.gated(floats(x), layer.activation)
    return gated(layer.gate_up(x), layer.activation)
