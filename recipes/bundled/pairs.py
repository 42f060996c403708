"""Collect pairs of a query and a passage that answers it, for `recipes.bundled.static`.

    python -m recipes.bundled.pairs -o pairs.parquet --articles wiki.parquet --pairs questions.parquet:question:passage

An article gives two: its title with its first paragraph, and a sentence with the rest of another paragraph. Passages
are cut to 800 characters. The rows are in random order.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq

from recipes.bundled.texts import cut
from recipes.sentences import sentences_of

PARAGRAPH = 200  # characters, at least
SHORTEST = 40  # characters of a passage

Pair = tuple[str, str]


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--articles", multiple=True, metavar="FILE", help="Parquet files with columns title and text.")
@click.option("--pairs", multiple=True, metavar="FILE:QUERY:PASSAGE", help="Parquet files, and two of their columns.")
@click.option("--most", default=30_000, show_default=True, help="Pairs to draw from one file of --pairs.")
@click.option("--seed", default=0, show_default=True)
def main(output: Path, articles: tuple[str, ...], pairs: tuple[str, ...], most: int, seed: int) -> None:
    """Write one Parquet file with columns `query` and `passage`."""
    chance = random.Random(seed)
    found = dict.fromkeys(pair for file in articles for pair in of_articles(file, chance))
    for name in pairs:
        file, query, passage = name.rsplit(":", 2)
        usable = [pair for pair in rows(file, query, passage) if all(pair) and len(pair[1]) >= SHORTEST]
        found |= dict.fromkeys(chance.sample(usable, min(most, len(usable))))
    every = list(found)
    chance.shuffle(every)
    queries, passages = ([pair[side] for pair in every] for side in (0, 1))
    pq.write_table(pa.table({"query": queries, "passage": [cut(passage) for passage in passages]}), output)
    click.echo(f"{len(every):,} pairs")


def of_articles(file: str, chance: random.Random) -> Iterator[Pair]:
    """Yield a title and the first paragraph, and a sentence and what follows it, of each article."""
    for title, text in rows(file, "title", "text"):
        paragraphs = [one for one in (text or "").splitlines() if len(one) > PARAGRAPH]
        if title and paragraphs:
            yield title, paragraphs[0]
        if len(paragraphs) > 1:
            first, *others = sentences_of(chance.choice(paragraphs[1:]))
            if others:
                yield first, " ".join(others)


def rows(file: str, *columns: str) -> Iterator[Pair]:
    for batch in pq.ParquetFile(file).iter_batches(columns=list(columns)):
        yield from zip(*(batch[column].to_pylist() for column in columns), strict=True)


if __name__ == "__main__":
    main()
