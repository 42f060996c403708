"""From token states to one vector a sequence: y = cast(normalise(truncate(Σ_t w_t n(x_t)))) over the sequence's span.

    n(x) = x                                          without a norm's weight
         = x / sqrt(mean(x²) + eps) · weight          with it: the model's last RMSNorm, x being hidden + residual
    w_t  = 1 / m                      mean, m tokens in the span
         = 2 p / (m (m + 1))          weighted_mean, p = 1..m the place in the span
         = 1 for the last or the first token of the span, else 0       last, first
    truncate keeps the first `dims` entries; normalise divides by the L2 norm and leaves a zero vector zero.

Shapes: T packed tokens, n sequences, D hidden size.
All arithmetic is fp32 or wider; rounding happens once, in the cast. A token outside a span never reaches its vector.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F

Mode = Literal["mean", "weighted_mean", "last", "first"]


def pool_reference(
    hidden: torch.Tensor,
    spans: torch.Tensor,
    mode: Mode,
    *,
    residual: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    dims: int | None = None,
    normalize: bool = False,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The definition: one sequence at a time, in float32 or wider."""
    wide = torch.promote_types(hidden.dtype, torch.float32)  # float64 stays float64, for gradcheck
    vectors = []
    for begin, end in spans.tolist():
        x = hidden[begin:end].to(wide)
        if residual is not None:
            x = x + residual[begin:end].to(wide)
        if weight is not None:
            x = x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight.to(wide)
        if mode == "last":
            y = x[-1]
        elif mode == "first":
            y = x[0]
        else:
            places = torch.arange(1, len(x) + 1, dtype=wide, device=x.device)
            w = places if mode == "weighted_mean" else torch.ones_like(places)
            y = (x * (w / w.sum())[:, None]).sum(0)
        y = y[:dims]
        if normalize and (norm := y.norm()) != 0:
            y = y / norm
        vectors.append(y)
    return torch.stack(vectors).to(out_dtype)


def pool(
    hidden: torch.Tensor,
    spans: torch.Tensor,
    mode: Mode,
    *,
    residual: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    dims: int | None = None,
    normalize: bool = False,
    out_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Pool `hidden` [T, D] over `spans` [n, 2] (int64 begin and end, counted over T) -> [n, dims or D] of `out_dtype`.

    `residual` [T, D] is added first; `weight` [D] applies the last RMSNorm; spans may overlap, but none is empty.
    Raises ValueError where a shape, a span or an option does not fit.
    """
    _check(hidden, spans, mode, residual, weight, dims, out_dtype)
    begin, end = spans.unbind(1)
    if mode in ("mean", "weighted_mean"):
        y = _weighted_sums(_normed(hidden, residual, weight, eps), begin, end - begin, mode)
    else:
        rows = end - 1 if mode == "last" else begin
        y = _normed(hidden[rows], None if residual is None else residual[rows], weight, eps)
    y = y[:, :dims]
    if normalize:
        norm = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
        y = y / torch.where(norm == 0, 1, norm)
    return y.to(out_dtype)


def _normed(
    hidden: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """n(x) of the formula, row by row, in float32 or wider."""
    x = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if residual is not None:
        x = x + residual
    if weight is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
    return x


def _weighted_sums(x: torch.Tensor, begin: torch.Tensor, lengths: torch.Tensor, mode: Mode) -> torch.Tensor:
    """Σ w_t x_t of each span, as one embedding_bag: 20 to 100 times as fast on a CPU as index_add or segment_reduce,
    and, unlike a difference of prefix sums, it neither cancels nor lets a neighbour's NaN in."""
    ends = lengths.cumsum(0)
    first_slot = ends - lengths
    place = torch.arange(int(ends[-1]), device=x.device) - first_slot.repeat_interleave(lengths)  # from 0 in its span
    w = (place + 1).to(x.dtype) if mode == "weighted_mean" else torch.ones_like(place, dtype=x.dtype)
    total = (lengths * (lengths + 1) / 2 if mode == "weighted_mean" else lengths).to(x.dtype)
    tokens = begin.repeat_interleave(lengths) + place
    w = w / total.repeat_interleave(lengths)
    return F.embedding_bag(tokens, x, first_slot, mode="sum", per_sample_weights=w)


def _check(
    hidden: torch.Tensor,
    spans: torch.Tensor,
    mode: str,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    dims: int | None,
    out_dtype: torch.dtype,
) -> None:
    if hidden.ndim != 2 or spans.ndim != 2 or spans.shape[1] != 2 or len(spans) == 0:
        shapes = f"{tuple(hidden.shape)} and {tuple(spans.shape)}"
        raise ValueError(f"pool needs hidden [T, D] and spans [n, 2] with n > 0, got {shapes}")
    begin, end = spans.unbind(1)
    if ((begin < 0) | (end <= begin) | (end > len(hidden))).any():
        raise ValueError(f"pool needs non-empty spans inside {len(hidden)} tokens, got {spans.tolist()}")
    if residual is not None and residual.shape != hidden.shape:
        raise ValueError(f"pool needs a residual of {tuple(hidden.shape)}, got {tuple(residual.shape)}")
    if weight is not None and weight.shape != hidden.shape[1:]:
        raise ValueError(f"pool needs a norm weight of {tuple(hidden.shape[1:])}, got {tuple(weight.shape)}")
    if mode not in get_args(Mode):
        raise ValueError(f"pool needs a mode of {', '.join(get_args(Mode))}, got {mode!r}")
    if dims is not None and not 1 <= dims <= hidden.shape[1]:
        raise ValueError(f"pool needs dims of 1 to {hidden.shape[1]}, got {dims}")
    if not out_dtype.is_floating_point:
        raise ValueError(f"pool needs a floating out_dtype, got {out_dtype}")
