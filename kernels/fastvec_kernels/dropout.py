"""Dropout of features that is a function of the token alone: y_td = x_td / (1 − p) where kept, else 0.

A token is known by two numbers, its sequence's and its place in it: the same ones are dropped in any batch, on any
device and in every repetition of a forward. Two random words a token (Philox) are mixed with the feature's index.

Shapes: T tokens, D features.
"""

import torch

from fastvec_kernels._attention_torch import keeps_of_columns, philox

__all__ = ["dropout", "dropout_reference"]


def dropout_reference(x: torch.Tensor, tokens: torch.Tensor, *, p: float, seed: int) -> torch.Tensor:
    """The definition: `x` [T, D] float, `tokens` [T, 2] int64."""
    keeps = _keeps(x, tokens, p, seed)
    return torch.where(keeps, x / (1 - p), torch.zeros_like(x))


def dropout(x: torch.Tensor, tokens: torch.Tensor, *, p: float, seed: int) -> torch.Tensor:
    """Drop features of `x` [T, D] with probability `p`; `tokens` [T, 2] int64 tell each row's sequence and place.

    Raises ValueError where shapes do not fit, `p` is not in [0, 1) or `seed` not in [0, 2^63).
    """
    if x.ndim != 2 or tokens.shape != (len(x), 2):
        raise ValueError(f"dropout needs x [T, D] and tokens [T, 2], got {tuple(x.shape)} and {tuple(tokens.shape)}")
    if not 0 <= p < 1:
        raise ValueError(f"dropout needs a probability from 0 up to, not at, 1, got {p}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"dropout needs a seed from 0 to 2^63 - 1, got {seed}")
    return x * (_keeps(x, tokens, p, seed) * (1 / (1 - p))).to(x.dtype)


def _keeps(x: torch.Tensor, tokens: torch.Tensor, p: float, seed: int) -> torch.Tensor:
    sequence, place = tokens.unbind(1)
    first, second, _, _ = philox([sequence, place, place * 0, place * 0], seed)
    return keeps_of_columns(first, second, x.shape[1], p)
