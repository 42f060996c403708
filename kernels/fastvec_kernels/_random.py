"""The coins of dropout: Philox gives each row two random words, and a mixer makes bits of these and a column's place.

Philox for every entry would be exact too, and costs ten rounds of wide products instead of two narrow ones.
On a CPU the mixer runs in NumPy, which has unsigned words and works in place: PyTorch's operations take six times as
long.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

WORD = 0xFFFFFFFF
WORDS_AT_ONCE = 1 << 16  # a block of the mixer that stays in a core's cache


def philox(counter: Sequence[torch.Tensor], seed: int) -> list[torch.Tensor]:
    """Philox-4x32-10 (Salmon et al., 2011): four random words, int64 below 2^32, of four such counters of one shape."""
    if all(c.device.type == "cpu" for c in counter):
        return _philox_in_numpy([c.numpy() for c in counter], seed)
    c0, c1, c2, c3 = counter
    k0, k1 = seed & WORD, seed >> 32 & WORD
    for _ in range(10):
        wide0, wide2 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # 64 bits that wrap; the halves are right all the same
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
    """[..., columns] bool: whether each column is kept, from two words [...] a row; exact to 24 bits of `p`."""
    if first.device.type != "cpu":
        return _mixed(first, second, columns) >> 8 >= drop_below(p)
    kept = np.empty((first.numel(), columns), dtype=np.bool_)
    for rows, words in _mixed_blocks(first, second, columns):
        words >>= np.uint32(8)
        np.greater_equal(words, np.uint32(drop_below(p)), out=kept[rows])
    return torch.from_numpy(kept).view(*first.shape, columns)


def keeps_of_features(first: torch.Tensor, second: torch.Tensor, features: int, p: float) -> torch.Tensor:
    """[..., features] bool, from half a word each, so that one mixes two of them; exact to 16 bits of `p`."""
    pairs = -(-features // 2)
    if first.device.type != "cpu":
        words = _mixed(first, second, pairs)
        halves = torch.stack([words & 0xFFFF, words >> 16], dim=-1).flatten(-2)[..., :features]
        return halves >= drop_below(p, bits=16)
    kept = np.empty((first.numel(), features), dtype=np.bool_)
    for rows, words in _mixed_blocks(first, second, pairs):
        halves = words.astype("<u4", copy=False).view("<u2")[:, :features]  # the lower half first
        np.greater_equal(halves, np.uint16(drop_below(p, bits=16)), out=kept[rows])
    return torch.from_numpy(kept).view(*first.shape, features)


def drop_below(p: float, *, bits: int = 24) -> int:
    """What random bits are compared with: an entry is dropped where they are below."""
    return min(round(p * (1 << bits)), (1 << bits) - 1)


def _mixed(first: torch.Tensor, second: torch.Tensor, columns: int) -> torch.Tensor:
    """[..., columns] int64 below 2^32."""
    x = first[..., None] + torch.arange(columns, device=first.device) * 0x9E3779B9 & WORD
    x = (x ^ x >> 16) * 0x21F0AAAD & WORD  # the constants of a 32-bit mixer without bias (Wellons, 2018)
    x = x ^ second[..., None]
    x = (x ^ x >> 15) * 0x735A2D97 & WORD
    return x ^ x >> 15


def _mixed_blocks(first: torch.Tensor, second: torch.Tensor, columns: int) -> Any:
    """The same words, block by block of rows: (slice of rows, [rows, columns] uint32)."""
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
