"""Texts as bags of tokens, and a teacher's vectors of them.

Shapes: D width of the teacher's vectors, T tokens of n texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Texts:
    """The token ids of n texts, as flat arrays."""

    ids: torch.Tensor  # [T] int32
    lengths: torch.Tensor  # [n]
    offsets: torch.Tensor  # [n + 1]

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Self:
        encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return cls.joined(
            torch.from_numpy(np.concatenate([np.array(one, dtype=np.int32) for one in encoded])),
            torch.tensor([len(one) for one in encoded]),
        )

    @classmethod
    def joined(cls, ids: torch.Tensor, lengths: torch.Tensor) -> Self:
        return cls(ids, lengths, F.pad(lengths.cumsum(0), (1, 0)))

    def bags(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens of the texts in `rows`, one text after another, and where each begins."""
        sizes = self.lengths[rows]
        starts = F.pad(sizes.cumsum(0), (1, 0))[:-1]
        places = torch.arange(int(sizes.sum())) + (self.offsets[rows] - starts).repeat_interleave(sizes)
        return self.ids[places].long(), starts

    def only(self, rows: torch.Tensor) -> Self:
        ids, _ = self.bags(rows)
        return self.joined(ids.int(), self.lengths[rows])


def read(folder: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[Texts, torch.Tensor]:
    """Read the texts in the Parquet files of `folder`, and the teacher's vectors [n, D] in float16."""
    found, targets = [], []
    for part in sorted(folder.glob("*.parquet")):
        table = pq.read_table(part)
        found.append(Texts.of(table["text"].to_pylist(), tokenizer))
        flat = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["embedding"].chunks])
        targets.append(torch.from_numpy(flat.reshape(len(table), -1)))
    ids, lengths = torch.cat([one.ids for one in found]), torch.cat([one.lengths for one in found])
    return Texts.joined(ids, lengths), torch.cat(targets)
