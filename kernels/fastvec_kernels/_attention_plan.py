"""How a batch is cut into sequences, and its sequences into programs: once a batch, on the host, for every layer."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """The programs of one pass over a batch.

    Sequences no longer than a limit are a class of their own, one program each; longer ones are cut into tiles.
    """

    items: torch.Tensor  # [items, 2] int32 on the device: a sequence, and the first row or key of a tile
    counts: tuple[int, ...]  # items of the longer sequences, then of each class, from the largest limit down


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionPlan:
    """How a batch is cut into sequences: built once a batch, used by every layer, without waiting for the device."""

    lengths: tuple[int, ...]  # tokens in each sequence, on the host
    cu_seqlens: torch.Tensor  # [n + 1] int32, where each sequence starts, then T
    sequence_ids: torch.Tensor  # [n] int32, what dropout knows each sequence by
    runs: tuple[tuple[int, int, int], ...]  # (first token, sequences, length): neighbours of equal length
    tokens: int  # T
    longest: int
    _work: dict[tuple[int, int, tuple[int, ...]], Work] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        lengths: Sequence[int],
        device: torch.device | str = "cpu",
        *,
        sequence_ids: Sequence[int] | None = None,
    ) -> "AttentionPlan":
        """`sequence_ids` are the numbers that dropout is keyed by, so that a sequence drops the same keys in any batch;
        omitted, its place in this batch. Raises ValueError where there is no sequence, an empty one, or an id too few.
        """
        if len(lengths) == 0 or min(lengths) < 1:
            raise ValueError(f"a plan needs sequences of at least one token, got lengths {list(lengths)}")
        ids = list(range(len(lengths)) if sequence_ids is None else sequence_ids)
        if len(ids) != len(lengths):
            raise ValueError(f"a plan needs an id for each of {len(lengths)} sequences, got {len(ids)}")
        runs, first = [], 0
        for length, group in itertools.groupby(lengths):
            sequences = sum(1 for _ in group)
            runs.append((first, sequences, length))
            first += sequences * length
        cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        return cls(
            lengths=tuple(lengths),
            cu_seqlens=cu_seqlens.to(device=device, non_blocking=True),
            sequence_ids=torch.tensor(ids, dtype=torch.int32).to(device=device, non_blocking=True),
            runs=tuple(runs),
            tokens=sum(lengths),
            longest=max(lengths),
        )

    def work(self, rows: int, group: int, limits: tuple[int, ...]) -> Work:
        """The programs where a tile has `rows` rows and a token `group` of them; `limits` are the classes, ascending.

        Longest sequences first, so that what is left when the device runs out of programs is small.
        """
        key = (rows, group, limits)
        if key not in self._work:
            self._work[key] = self._list_work(*key)
        return self._work[key]

    def _list_work(self, rows: int, group: int, limits: tuple[int, ...]) -> Work:
        lengths = np.array(self.lengths, dtype=np.int64)
        order = np.argsort(-lengths, kind="stable")
        classes = np.searchsorted(np.array(limits, dtype=np.int64), lengths[order])  # len(limits): longer than all
        tiled = order[classes == len(limits)]
        tiles = -(-lengths[tiled] * group // rows)
        first_tiles = np.cumsum(tiles) - tiles
        first_rows = (np.arange(tiles.sum()) - np.repeat(first_tiles, tiles)) * rows
        sequences = np.concatenate([np.repeat(tiled, tiles), order[classes < len(limits)]])
        items = np.zeros((len(sequences), 2), dtype=np.int32)
        items[:, 0] = sequences
        items[: len(first_rows), 1] = first_rows
        counts = [len(first_rows), *(int((classes == index).sum()) for index in reversed(range(len(limits))))]
        return Work(
            items=torch.from_numpy(items).to(device=self.cu_seqlens.device, non_blocking=True), counts=tuple(counts)
        )
