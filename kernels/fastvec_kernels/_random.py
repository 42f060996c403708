"""Random bits of dropout: Philox gives each row two random words; a mixer combines them with the column index.

Philox for every entry would be correct too, but takes ten rounds of wide products instead of two narrow products.
On a CPU the mixer runs in NumPy, which has unsigned words and works in place: PyTorch operations take six times as
long.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

WORD = 0xFFFFFFFF
WORDS_AT_ONCE = 1 << 16  # per block of the mixer, so that a block stays in a core's cache


def philox(counter: Sequence[torch.Tensor], seed: int) -> list[torch.Tensor]:
    """Return the four random words of Philox-4x32-10 (Salmon et al., 2011) for four counters of one shape.

    Words and counters are int64 below 2^32.
    """
    if all(c.device.type == "cpu" for c in counter):
        return _philox_in_numpy([c.numpy() for c in counter], seed)
    c0, c1, c2, c3 = counter
    k0, k1 = seed & WORD, seed >> 32 & WORD
    for _ in range(10):
        wide0, wide2 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # wraps at 64 bits; both 32-bit halves are still right
        c0, c1, c2, c3 = (wide2 >> 32 & WORD) ^ c1 ^ k0, wide2 & WORD, (wide0 >> 32 & WORD) ^ c3 ^ k1, wide0 & WORD
        k0, k1 = k0 + 0x9E3779B9 & WORD, k1 + 0xBB67AE85 & WORD
    return [c0, c1, c2, c3]


def _philox_in_numpy(counter: Sequence[npt.NDArray[np.int64]], seed: int) -> list[torch.Tensor]:
    shift, low = np.uint64(32), np.uint64(WORD)
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.int64).astype(np.uint64) & low for c in counter)
    k0, k1 = seed & WORD, seed >> 32 & WORD
    for _ in range(10):
        wide0, wide2 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (wide2 >> shift) ^ c1 ^ np.uint64(k0), wide2 & low
        c2, c3 = (wide0 >> shift) ^ c3 ^ np.uint64(k1), wide0 & low
        k0, k1 = k0 + 0x9E3779B9 & WORD, k1 + 0xBB67AE85 & WORD
    return [torch.from_numpy(np.asarray(c, dtype=np.int64)) for c in (c0, c1, c2, c3)]


def keeps_of_columns(first: torch.Tensor, second: torch.Tensor, columns: int, p: float) -> torch.Tensor:
    """Return whether each column is kept [..., columns], from two words per row [...]; `p` is rounded to 24 bits."""
    if first.device.type != "cpu":
        return _mixed(first, second, columns) >> 8 >= drop_below(p)
    kept = np.empty((first.numel(), columns), dtype=np.bool_)
    for rows, words in _mixed_blocks(first, second, columns):
        words >>= np.uint32(8)
        np.greater_equal(words, np.uint32(drop_below(p)), out=kept[rows])
    return torch.from_numpy(kept).view(*first.shape, columns)


def keeps_of_features(first: torch.Tensor, second: torch.Tensor, features: int, p: float) -> torch.Tensor:
    """Return whether each feature is kept [..., features], by half a mixed word each; `p` is rounded to 16 bits."""
    pairs = -(-features // 2)
    if first.device.type != "cpu":
        words = _mixed(first, second, pairs)
        halves = torch.stack([words & 0xFFFF, words >> 16], dim=-1).flatten(-2)[..., :features]
        return halves >= drop_below(p, bits=16)
    kept = np.empty((first.numel(), features), dtype=np.bool_)
    for rows, words in _mixed_blocks(first, second, pairs):
        halves = words.astype("<u4", copy=False).view("<u2")[:, :features]  # the lower half comes first
        np.greater_equal(halves, np.uint16(drop_below(p, bits=16)), out=kept[rows])
    return torch.from_numpy(kept).view(*first.shape, features)


def drop_below(p: float, *, bits: int = 24) -> int:
    """Return the threshold of the random bits: an entry is dropped if its bits are below it."""
    return min(round(p * (1 << bits)), (1 << bits) - 1)


def _mixed(first: torch.Tensor, second: torch.Tensor, columns: int) -> torch.Tensor:
    """Return the mixed words [..., columns], int64 below 2^32."""
    x = first[..., None] + torch.arange(columns, device=first.device) * 0x9E3779B9 & WORD
    x = (x ^ x >> 16) * 0x21F0AAAD & WORD  # the constants of a low-bias 32-bit mixer (Wellons, 2018)
    x = x ^ second[..., None]
    x = (x ^ x >> 15) * 0x735A2D97 & WORD
    return x ^ x >> 15


def _mixed_blocks(first: torch.Tensor, second: torch.Tensor, columns: int) -> Any:
    """Yield the same words in blocks of rows: (slice of rows, uint32 [rows, columns])."""
    starts, keys = (words.reshape(-1, 1).numpy().astype(np.uint32) for words in (first, second))
    offsets: npt.NDArray[np.uint32] = np.arange(columns, dtype=np.uint32) * np.uint32(0x9E3779B9)
    step = max(1, WORDS_AT_ONCE // max(columns, 1))
    for begin in range(0, len(starts), step):
        rows = slice(begin, begin + step)
        x = starts[rows] + offsets
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x21F0AAAD)
        x ^= keys[rows]
        x ^= x >> np.uint32(15)
        x *= np.uint32(0x735A2D97)
        x ^= x >> np.uint32(15)
        yield rows, x
