"""Order texts and their vectors so that texts of one topic follow one another, as training data of a distillation.

    python -m recipes.bundled.topics vectors -o topics.parquet

`fastvec adapt --objective distil` reads a few thousand examples at a time and makes half of its batches of one topic
among these. From a file in random order, such a topic is broad. Here it is one of all texts: runs of `--size` texts
that are near each other, found as the training finds its topics, follow one another in a random order.
"""

from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastvec.training.objectives.topics import Integers, integers, topics
from recipes.bundled.texts import ROW_GROUP


@click.command()
@click.argument("vectors", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--size", default=256, show_default=True, help="Texts of a run.")
@click.option("--seed", default=0, show_default=True)
def main(vectors: Path, output: Path, size: int, seed: int) -> None:
    """Write the rows of VECTORS, what `recipes.bundled.teacher` wrote, to one Parquet file in the new order."""
    table = pq.read_table(vectors)
    random = np.random.default_rng(seed)
    runs = topics(random.permutation(len(table)), whole(table), size, random)
    order = np.concatenate([random.permutation(runs[place]) for place in random.permutation(len(runs))])
    unfinished = output.with_name(f".{output.name}")
    with pq.ParquetWriter(unfinished, table.schema) as writer:
        for begin in range(0, len(order), ROW_GROUP):
            writer.write_table(table.take(order[begin : begin + ROW_GROUP]))
    unfinished.rename(output)
    click.echo(f"{len(table):,} texts in {len(runs):,} runs")


def whole(table: pa.Table) -> Integers:
    """Return the vectors [n, D] in the integers with which topics are found."""
    width = table.schema.field("embedding").type.list_size
    chunks = table["embedding"].chunks
    return np.concatenate(
        [integers(chunk.flatten().to_numpy().reshape(-1, width).astype(np.float32)) for chunk in chunks]
    )


if __name__ == "__main__":
    main()
