"""Split a batch into sequences, and sequences into kernel programs: on the host, once per batch, for every layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from fastvec_kernels._launch import to_device
from fastvec_kernels.attention.parts import Tile

# How a CPU attends: "runs" calls SDPA for each run of adjacent sequences of equal length, "padded" is `padded`.
Route = Literal["runs", "padded"]
# Up to which length of a batch's longest sequence each route is taken, ascending; "runs" for longer ones. Which is
# faster depends on the CPU's instructions, the dtype and the length, so a caller that runs for long measures it.
Routes = tuple[tuple[int, Route], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionPlan:
    """The sequences of a packed batch. Built once per batch, used by every layer, without waiting for the device."""

    lengths: tuple[int, ...]  # tokens in each sequence
    host_lengths: torch.Tensor  # [n] int32, the same on the host, as operators take tensors
    cu_seqlens: torch.Tensor  # [n + 1] int32, where each sequence starts, then T
    sequence_ids: torch.Tensor  # [n] int32, by which dropout identifies each sequence
    runs: tuple[tuple[int, int, int], ...]  # (first token, sequences, length): adjacent sequences of equal length
    tokens: int  # T
    routes: Routes | None  # for inference on a CPU; None for the defaults

    @classmethod
    def build(
        cls,
        lengths: Sequence[int],
        device: torch.device | str = "cpu",
        *,
        sequence_ids: Sequence[int] | None = None,
        routes: Routes | None = None,
    ) -> "AttentionPlan":
        """Build the plan of a batch from the length of each sequence in tokens.

        Dropout is keyed by `sequence_ids`, so that a sequence drops the same keys in any batch; the default is the
        index in this batch. Raises ValueError if there is no sequence, an empty one, or not one id per sequence.
        """
        array = np.array(lengths, dtype=np.int32)
        if len(array) == 0 or array.min() < 1:
            raise ValueError(f"a plan needs sequences of at least one token, got lengths {list(lengths)}")
        ids = np.arange(len(array), dtype=np.int32) if sequence_ids is None else np.array(sequence_ids, dtype=np.int32)
        if len(ids) != len(array):
            raise ValueError(f"a plan needs an id for each of {len(array)} sequences, got {len(ids)}")
        starts = np.append(0, np.cumsum(array, dtype=np.int64))
        begins = np.append(0, np.flatnonzero(np.diff(array)) + 1)  # of the runs
        counts = np.diff(np.append(begins, len(array)))
        device = torch.device(device)
        return cls(
            lengths=tuple(lengths),
            host_lengths=torch.from_numpy(array),
            cu_seqlens=to_device(starts.astype(np.int32), device),
            sequence_ids=to_device(ids, device),
            runs=tuple(zip(starts[begins].tolist(), counts.tolist(), array[begins].tolist(), strict=True)),
            tokens=int(starts[-1]),
            routes=routes,
        )


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Lengths:
    """The lengths of a batch. `lengths_of` returns the same object for equal lengths, so that it can be a cache key."""

    array: npt.NDArray[np.int64]
    tokens: int
    longest: int
    longest_at: int  # first token of a longest sequence


def lengths_of(host_lengths: torch.Tensor) -> Lengths:
    """Return the lengths in a plan's `host_lengths`.

    The cache key is the content, not the plan: operators take tensors, and the plan may no longer exist in the backward
    pass.
    """
    return _lengths_of(host_lengths.numpy().tobytes())


@lru_cache(maxsize=16)
def _lengths_of(content: bytes) -> Lengths:
    array = np.frombuffer(content, dtype=np.int32).astype(np.int64)
    index = int(array.argmax())
    return Lengths(array=array, tokens=int(array.sum()), longest=int(array[index]), longest_at=int(array[:index].sum()))


def visible_tokens(length: int, causal: bool, window: int | None, device: torch.device) -> torch.Tensor:
    """Return a mask [length, length]: whether token i (row) sees token j."""
    i = torch.arange(length, device=device)
    behind = i[:, None] - i[None, :]
    if window is None:
        return behind >= 0 if causal else torch.ones_like(behind, dtype=torch.bool)
    return (behind >= 0) & (behind < window) if causal else behind.abs() <= window


def check_tokens(planned: int, found: int) -> None:
    if planned != found:
        raise ValueError(f"the attention plan is for {planned} tokens, but q has {found}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """The programs of one pass over a batch, for one head.

    A class has the sequences up to its length limit, with one program each; sequences above all limits are cut into
    tiles.
    """

    items: torch.Tensor  # [items, 2] int32 on the device: a sequence, and the first row or key of a tile
    counts: tuple[int, ...]  # items of the tiled sequences, then of each class, from the largest limit down

    def by_class(self, tiles: dict[int, Tile]) -> Iterator[tuple[Tile, int, int]]:
        """Yield, for each class with sequences, its tile of `tiles`, its first item and the number of its items."""
        first = self.counts[0]
        for tile, count in zip(reversed(tiles.values()), self.counts[1:], strict=True):
            if count:
                yield tile, first, count
            first += count


def list_programs(lengths: Lengths, device: torch.device, rows: int, group: int, limits: tuple[int, ...] = ()) -> Work:
    """Return the programs for tiles of `rows` rows, `group` rows per token; `limits` are the classes, ascending.

    The longest sequences come first, so that only short programs run at the end, when multiprocessors become idle. The
    list is cached, as one layer after another asks for the same lengths.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0  # that orders the copy
    return _list_work(lengths, device, stream, rows, group, limits)


@lru_cache(maxsize=64)
def _list_work(
    batch: Lengths, device: torch.device, stream: int, rows: int, group: int, limits: tuple[int, ...]
) -> Work:
    lengths = batch.array
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
    return Work(items=to_device(items, device), counts=tuple(counts))
