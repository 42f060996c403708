"""A packed batch: n sequences laid end to end in one row of T tokens. There is no padding in the project.

Shapes: T packed tokens, n sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fastvec_kernels import to_device

IntArray = npt.NDArray[np.integer]


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """One batch, ready for a forward. `spans` and `lengths` stay on the host: planning never waits for the device."""

    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64, from 0 in each sequence
    cu_seqlens: torch.Tensor  # [n + 1] int32, where each sequence starts, then T
    spans: torch.Tensor  # [n, 2] int64, begin and end of the pooled tokens, counted over T; on the host
    lengths: tuple[int, ...]  # tokens in each sequence


def pack(sequences: Sequence[IntArray], spans: IntArray | None = None, *, device: torch.device | str = "cpu") -> Packed:
    """Lay `sequences` (token ids, each of at least one token) end to end.

    `spans` [n, 2] are the pooled tokens of each sequence, counted from its own start; omitted, all of them.
    Raises ValueError for an empty sequence or a span outside its sequence.
    """
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    if len(sequences) == 0 or lengths.min() == 0:
        raise ValueError(f"pack needs sequences of at least one token, got lengths {lengths.tolist()}")
    if spans is None:
        spans = np.stack([np.zeros_like(lengths), lengths], axis=1)
    begin, end = spans[:, 0], spans[:, 1]
    if len(spans) != len(lengths) or (begin < 0).any() or (end <= begin).any() or (end > lengths).any():
        raise ValueError(
            f"pack needs a non-empty span inside each sequence, got {spans.tolist()} for {lengths.tolist()}"
        )
    device = torch.device(device)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    starts = cu_seqlens[:-1]
    positions = np.arange(cu_seqlens[-1]) - np.repeat(starts, lengths)

    return Packed(
        token_ids=to_device(np.concatenate(list(sequences)).astype(np.int64), device),
        positions=to_device(positions, device),
        cu_seqlens=to_device(cu_seqlens.astype(np.int32), device),
        spans=torch.from_numpy((spans + starts[:, None]).astype(np.int64, copy=False)),
        lengths=tuple(lengths.tolist()),
    )
