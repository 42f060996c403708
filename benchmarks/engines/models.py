"""Models and texts to embed: decoders of common shapes with random weights, and length mixes of a real corpus.

Speed depends on the model's shape, not on the values of its weights, so no trained model is needed. Each saved folder
loads in fastvec, transformers and sentence-transformers, bidirectional, mean pooled and normalized.

    python -m benchmarks.engines.models FOLDER SHAPE    saves a random model, unless the folder exists
"""

import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaModel

from fastvec.checkpoints import bundled
from fastvec.training.saved_folder import save_modules

INIT = 0.02
SHORT = 200  # characters


class TooFewTexts(click.ClickException, ValueError):
    """The corpus has fewer texts than requested; on the command line, a one-line error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """The sizes of a Llama-style decoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head: int

    @property
    def config(self) -> dict[str, Any]:
        """The sizes under the names of transformers' configurations."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head,
        }

    @property
    def parameters(self) -> int:
        """The number of parameters in matrix products: without embeddings and norms."""
        attention = 2 * self.hidden * self.head * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    def flops(self, lengths: Sequence[int]) -> float:
        """Return the FLOPs of one forward over `lengths` tokens: products with weights, and attention's QKᵀ and PV."""
        scores = 4 * sum(length**2 for length in lengths) * self.heads * self.head * self.layers
        return 2.0 * self.parameters * sum(lengths) + scores


MODEL_SHAPES = {
    "25M": ModelShape(hidden=512, intermediate=1408, layers=8, heads=8, kv_heads=8, head=64),
    "0.1B": ModelShape(hidden=768, intermediate=2048, layers=14, heads=12, kv_heads=12, head=64),
    "0.6B": ModelShape(hidden=1024, intermediate=3072, layers=28, heads=16, kv_heads=8, head=128),
    "1.7B": ModelShape(hidden=2048, intermediate=6144, layers=28, heads=16, kv_heads=8, head=128),
    "8B": ModelShape(hidden=4096, intermediate=12288, layers=36, heads=32, kv_heads=8, head=128),
}


def save_random_model(folder: Path, shape: ModelShape, *, max_length: int, tokenizer: Path | None = None) -> Path:
    """Save a bfloat16 model of `shape` with random weights; `tokenizer` is a folder, by default the bundled model's."""
    source = tokenizer or bundled.bundled_model()
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab().values()
    config = LlamaConfig(
        vocab_size=max(ids) + 1,
        **shape.config,
        max_position_embeddings=max_length,
        bos_token_id=None,
        eos_token_id=None,
    )
    config.is_causal, config.use_bidirectional_attention = False, True
    torch.manual_seed(0)
    with torch.device("meta"):
        model = LlamaModel(config).bfloat16()
    model.to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        parameter.data.fill_(1) if name.endswith("norm.weight") else parameter.data.normal_(0, INIT)
    model.save_pretrained(folder)
    save_modules(folder, pooling="mean", hidden_size=shape.hidden, max_length=max_length)
    return folder


def _short(rows: Iterator[str]) -> Iterator[str]:
    """Yield the sentences of 20 to SHORT characters."""
    for row in rows:
        yield from (part for line in row.splitlines() for part in line.split(". ") if 20 <= len(part) <= SHORT)


def _as_they_are(rows: Iterator[str]) -> Iterator[str]:
    yield from rows


def _long_tail(rows: Iterator[str]) -> Iterator[str]:
    """Yield 80 % sentences, 15 % rows and 5 % concatenations of rows; the concatenations have most of the tokens."""
    draw = random.Random(0)
    for row in rows:
        kind = draw.random()
        if kind < 0.8:
            yield next(_short(iter([row])), row[:SHORT])
        elif kind < 0.95:
            yield row
        else:
            yield " ".join([row, *(next(rows, "") for _ in range(int(draw.paretovariate(1))))])


MIXES: dict[str, tuple[int, Callable[[Iterator[str]], Iterator[str]]]] = {
    "short": (512, _short),
    "wiki": (512, _as_they_are),
    "long-tail": (8192, _long_tail),
}


def texts_of(corpus: Path, column: str) -> Iterator[str]:
    """Yield the non-null texts of a Parquet file, unchanged."""
    for batch in pq.ParquetFile(corpus).iter_batches(columns=[column]):
        yield from batch[column].drop_null().to_pylist()


def read_mix(corpus: Path, column: str, mix: str, rows: int | None, *, at_most: int = 0) -> list[str]:
    """Return the first `rows` texts of a mix (None: up to `at_most`). Raise TooFewTexts if fewer than `rows`."""
    found = list(islice(MIXES[mix][1](texts_of(corpus, column)), at_most if rows is None else rows))
    if rows is not None and len(found) < rows:
        raise TooFewTexts(
            f"{corpus} has {len(found)} texts of the mix {mix}, {rows} are needed: use a larger corpus or fewer --rows"
        )
    return found


if __name__ == "__main__":
    if not Path(sys.argv[1]).exists():
        save_random_model(Path(sys.argv[1]), MODEL_SHAPES[sys.argv[2]], max_length=512)
