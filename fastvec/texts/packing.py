"""Packed batches: n sequences concatenated into one row of T tokens. fastvec never pads sequences.

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
    """A batch ready for a forward. `spans` and `lengths` stay on the host, so that planning never syncs the device.

    The last sequences may have no span: they only fill the batch up.
    """

    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64, from 0 in each sequence
    cu_seqlens: torch.Tensor  # [sequences + 1] int32, the start of each sequence, then T
    spans: torch.Tensor  # [n, 2] int64, begin and end of the pooled tokens as indices into T; on the host
    lengths: tuple[int, ...]  # tokens in each sequence


def pack(sequences: Sequence[IntArray], spans: IntArray | None = None, *, device: torch.device | str = "cpu") -> Packed:
    """Concatenate `sequences` (token ids, at least one token each) into a packed batch.

    `spans` [n, 2] are begin and end of each sequence's pooled tokens, relative to its start; None pools all tokens.
    Raises ValueError if there are no sequences, a sequence is empty, or a span is empty or outside its sequence.
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
    return pack_flat(np.concatenate(list(sequences)), lengths, spans, device=device)


def pack_flat(
    ids: IntArray,
    lengths: IntArray,
    spans: IntArray,
    *,
    owners: IntArray | None = None,
    device: torch.device | str,
    multiple: int = 1,
) -> Packed:
    """Pack sequences that are concatenated already: `ids` [T] of sequences of `lengths` [n], with their `spans`.

    Each sequence has one span, or those that `owners` [spans] says are of this sequence.
    If T is not a multiple of `multiple`, sequences of one token and without a span are appended.
    """
    device = torch.device(device)
    if missing := -len(ids) % multiple:
        ids = np.append(ids, np.zeros(missing, dtype=ids.dtype))
        lengths = np.append(lengths, np.ones(missing, dtype=lengths.dtype))
    cu_seqlens = np.append(0, np.cumsum(lengths))
    starts = cu_seqlens[:-1]
    owners = np.arange(len(spans)) if owners is None else owners
    positions = np.arange(cu_seqlens[-1]) - np.repeat(starts, lengths)
    return Packed(
        token_ids=to_device(ids.astype(np.int64), device),
        positions=to_device(positions, device),
        cu_seqlens=to_device(cu_seqlens.astype(np.int32), device),
        spans=torch.from_numpy((spans + starts[owners, None]).astype(np.int64, copy=False)),
        lengths=tuple(lengths.tolist()),
    )
