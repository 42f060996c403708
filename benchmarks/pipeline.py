"""Compares everything but the model, `fastvec embed` with an encoder that returns zeros, with tokenizing alone.

    PYTHONPATH=.:kernels python -m benchmarks.pipeline corpus.parquet [--column text] [--model MODEL] [--rounds 5]

Tokenizing alone is `encode_batch` of `tokenizers` on the same texts, already in memory as Python strings, and the
extraction of ids and offsets. fastvec reads the file, tokenizes, returns zeros as vectors and writes the Arrow file.
Both use all cores, and rounds alternate. For both, texts are first cut to `--max-length` times CHARACTERS_PER_TOKEN
characters.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.engines.models import texts_of
from fastvec import Encoder, embed
from fastvec.encoder import SubmittedChunk
from fastvec.texts.tokenized import TokenizedTexts
from fastvec.texts.tokenizer import CHARACTERS_PER_TOKEN

BATCH = 8192  # texts per call of `encode_batch`


class ZeroEncoder(Encoder):
    """An encoder that returns zeros instead of running the model."""

    def begin(self, texts: TokenizedTexts, between_batches: Callable[[], None] = lambda: None) -> SubmittedChunk:
        between_batches()
        zeros, finite = torch.zeros(len(texts), self.dims), torch.ones(len(texts), dtype=torch.bool)
        return SubmittedChunk(texts=texts, vectors=zeros, finite=finite, failed={}, batch_tokens=self.batch_tokens)


@click.command()
@click.argument("corpus", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--column", default="text", show_default=True)
@click.option("--model")
@click.option("--max-length", default=512, show_default=True)
@click.option("--rows", default=100_000, show_default=True, help="Maximum number of rows.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path))
def main(corpus: Path, column: str, model: str | None, max_length: int, rows: int, **run: object) -> None:
    """Print the rows/s of both, and the ratio of fastvec to tokenizing alone."""
    encoder = ZeroEncoder.from_pretrained(model, max_length=max_length)
    texts = [text[: max_length * CHARACTERS_PER_TOKEN] for text in islice(texts_of(corpus, column), rows)]
    rates: dict[str, list[float]] = {"tokenizers alone": [], "fastvec without a model": []}
    stages: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "rows.parquet")
        pq.write_table(pa.table({"text": texts}), source, row_group_size=BATCH)
        for number in range(int(str(run["rounds"])) + 1):  # the first round is a warm-up
            seconds = _tokenize(encoder, texts)
            started = time.perf_counter()
            report = embed([source], Path(folder, f"{number}.arrow"), encoder=encoder, column="text")
            if number:
                rates["tokenizers alone"].append(len(texts) / seconds)
                rates["fastvec without a model"].append(len(texts) / (time.perf_counter() - started))
                stages = dict(report.waits)
    for name, values in rates.items():
        print(f"{name:24} {statistics.median(values):10,.0f} rows/s")
    alone, ours = rates.values()
    ratios = [own / other for own, other in zip(ours, alone, strict=True)]
    print(f"{'ratio':24} {statistics.median(ratios):10.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")
    print("waits in the last round: " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in stages.items()))
    if isinstance(run["json_path"], Path):
        run["json_path"].write_text(json.dumps({"rows": len(texts), **rates, "waits": stages}, indent=1) + "\n")


def _tokenize(encoder: Encoder, texts: list[str]) -> float:
    backend = encoder._tokenizer.backend_tokenizer
    backend.no_truncation()
    started = time.perf_counter()
    for begin in range(0, len(texts), BATCH):
        for encoding in backend.encode_batch(texts[begin : begin + BATCH], add_special_tokens=False):
            _ = encoding.ids, encoding.offsets
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
