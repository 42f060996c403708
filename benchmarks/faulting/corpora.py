"""Small corpora with awkward rows, and a small model with random weights, one token of which has no finite vector."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from benchmarks.engines.models import ModelShape, save_random_model

SHAPE = ModelShape(hidden=32, intermediate=64, layers=1, heads=2, kv_heads=2, head=16)
WORDS = ["a", "the", "whale", "sea", "train", "town", "bread", "flour", "seven", "slow", "café", "日本", "ok"]
NOT_FINITE = "\N{SNOWMAN}"  # its token's embedding is NaN
MAX_TOKENS = 64

Text = str | None


def save_model(folder: Path) -> Path:
    """Save a model of 30,000 parameters whose tokens are bytes, so that it loads at once."""
    tokenizer = folder.with_name(f"{folder.name}-tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = models.BPE(vocab={letter: number for number, letter in enumerate([*alphabet, NOT_FINITE])}, merges=[])
    made = Tokenizer(bpe)
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_tokens([NOT_FINITE])
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(tokenizer)
    logging.disable_progress_bar()
    save_random_model(folder, SHAPE, max_length=MAX_TOKENS, tokenizer=tokenizer)
    weights = load_file(folder / "model.safetensors")
    weights["embed_tokens.weight"][len(alphabet)] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def save_corpus(folder: Path, draw: random.Random, *, awkward: bool) -> list[Path]:
    """Save one to three files of several formats; an `awkward` corpus has null, empty, long and invalid rows."""
    folder.mkdir()
    files = []
    for number in range(draw.randint(1, 3)):
        texts = [_text(draw, awkward) for _ in range(draw.randint(20, 120))]
        suffix, save = draw.choice(list(FORMATS.items()))
        files.append(folder / f"{number}.{suffix}")
        save(files[-1], texts, draw, awkward)
    return files


def _text(draw: random.Random, awkward: bool) -> Text:
    kind = draw.random() if awkward else 1
    if kind < 0.12:
        return draw.choice([None, "", "  ", NOT_FINITE, f"a {NOT_FINITE} sea"])
    return " ".join(draw.choices(WORDS, k=draw.randint(40, 60) if kind < 0.15 else draw.randint(1, 9)))


def _table(texts: Sequence[Text]) -> pa.Table:
    return pa.table({"id": pa.array(range(len(texts)), pa.int64()), "text": pa.array(texts, pa.string())})


def _save_parquet(path: Path, texts: Sequence[Text], draw: random.Random, awkward: bool) -> None:
    pq.write_table(_table(texts), path, row_group_size=draw.choice([7, 30, 1000]))


def _save_arrow(path: Path, texts: Sequence[Text], draw: random.Random, awkward: bool) -> None:
    table = _table(texts)
    with path.open("wb") as file, ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=draw.choice([11, 50, 1000]))


def _save_lines(path: Path, texts: Sequence[Text], draw: random.Random, awkward: bool) -> None:
    lines = [json.dumps({"id": number, "text": text}) for number, text in enumerate(texts)]
    if awkward:
        lines.insert(draw.randrange(1, len(lines)), "{broken")
    path.write_text("\n".join(lines) + "\n")


FORMATS: dict[str, Callable[[Path, Sequence[Text], random.Random, bool], None]] = {
    "parquet": _save_parquet,
    "arrow": _save_arrow,
    "jsonl": _save_lines,
}
