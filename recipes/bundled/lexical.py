"""Targets that know words as well as meanings: the teacher's vectors, and beside each its text's TF-IDF, projected.

    python -m recipes.bundled.lexical vectors -o targets --tokenizer tokenizer --share 0.2

The cosine of two targets is (1 - share) times that of the teacher's vectors plus share times that of the TF-IDF
vectors, the latter to about 1 / sqrt(width): a token's direction is random, and random projections keep inner products
(Johnson and Lindenstrauss, 1984). So a model that learns them tells apart texts of a trade whose words its teacher's
other texts hardly had. Parts and rows are those of the vectors.

Shapes: V vocabulary, K width of a projection, D the teacher's, n texts.
"""

from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

from recipes.bundled.bags import Texts, matrix


@click.command()
@click.argument("vectors", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--tokenizer", "tokenizer_path", required=True)
@click.option("--share", default=0.2, show_default=True, help="Of a target's cosines, what comes from words.")
@click.option("--width", default=128, show_default=True, help="Dimensions of the projection.")
def main(vectors: Path, output: Path, tokenizer_path: str, share: float, width: int) -> None:
    """Write a part for each of VECTORS, a folder of Parquet files of text and embedding."""
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_path)
    parts = sorted(vectors.glob("*.parquet"))
    texts = [Texts.of(pq.read_table(part, columns=["text"])["text"].to_pylist(), tokenizer) for part in parts]
    rarity = inverse_document_frequency(texts, len(tokenizer))
    directions = codes(len(tokenizer), width) * rarity[:, None]
    for part, bag in zip(parts, texts, strict=True):
        table = pq.read_table(part)
        meanings = F.normalize(matrix(table["embedding"]).float(), dim=1)
        both = torch.cat([meanings * (1 - share) ** 0.5, project(bag, directions) * share**0.5], dim=1)
        flat = pa.array(both.numpy().astype(np.float16).ravel())
        column = pa.FixedSizeListArray.from_arrays(flat, both.shape[1])
        unfinished = output / f".{part.name}"
        pq.write_table(pa.table({"text": table["text"], "embedding": column}), unfinished)
        unfinished.rename(output / part.name)
    click.echo(f"{output}: {len(parts):,} parts")


def codes(vocabulary: int, width: int) -> torch.Tensor:
    """A random direction [V, K] for every token, the same whenever they are asked for."""
    random = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(vocabulary, width, generator=random), dim=1)


def inverse_document_frequency(parts: list[Texts], vocabulary: int) -> torch.Tensor:
    """log((n + 1) / (texts that hold the token + 1)) [V]."""
    holders = sum((torch.bincount(occurrences(part, vocabulary)[1], minlength=vocabulary) for part in parts), 0)
    count = sum(len(part.lengths) for part in parts)
    return torch.log((count + 1) / (torch.as_tensor(holders) + 1.0))


def occurrences(texts: Texts, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each text's tokens once: the text, the token, and how often it is there."""
    rows = torch.arange(len(texts.lengths)).repeat_interleave(texts.lengths)
    pairs, counts = torch.unique(rows * vocabulary + texts.ids.long(), return_counts=True)
    return pairs // vocabulary, pairs % vocabulary, counts


def project(texts: Texts, directions: torch.Tensor) -> torch.Tensor:
    """Unit vectors [n, K]: the sums of the texts' `directions` [V, K], each times 1 + log(times it occurs)."""
    rows, tokens, counts = occurrences(texts, len(directions))
    starts = F.pad(torch.bincount(rows, minlength=len(texts.lengths)).cumsum(0), (1, 0))[:-1]
    weights = 1 + torch.log(counts.float())
    return F.normalize(F.embedding_bag(tokens, directions, starts, mode="sum", per_sample_weights=weights), dim=1)


if __name__ == "__main__":
    main()
