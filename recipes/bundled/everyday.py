"""Make everyday sentences by grammars: scenes, headlines, and requests of customers.

    python -m recipes.bundled.everyday -o everyday.parquet

They are not copied from anywhere, and nobody wrote them: the words and templates are in TOML files beside this one.
"""

import random
from collections.abc import Callable
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq

from recipes.bundled.scenes import scenes
from recipes.bundled.templates import Templates

FOLDER = Path(__file__).parent
GRAMMARS: dict[str, Callable[[random.Random], list[str]]] = {
    "scenes": scenes,
    "headlines": Templates(FOLDER / "headlines.toml").texts,
    "requests": Templates(FOLDER / "requests.toml").texts,
}


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--scenes", default=200_000, show_default=True, help="Number of sentences.")
@click.option("--headlines", default=45_000, show_default=True, help="Number of sentences.")
@click.option("--requests", default=45_000, show_default=True, help="Number of sentences.")
@click.option("--seed", default=0, show_default=True)
def main(output: Path, seed: int, **counts: int) -> None:
    """Write one Parquet file with a column `text`."""
    found: dict[str, None] = {}
    for name, count in counts.items():
        found |= dict.fromkeys(sentences(GRAMMARS[name], count, random.Random(f"{name} {seed}")))
    pq.write_table(pa.table({"text": list(found)}), output)
    click.echo(f"{len(found):,} sentences, {sum(map(len, found)) / len(found):.0f} characters on average")


def sentences(grammar: Callable[[random.Random], list[str]], count: int, random: random.Random) -> list[str]:
    """Return `count` different sentences, with and without capitals and full stops."""
    found: dict[str, None] = {}
    while len(found) < count:
        found |= {spelled(text, random): None for text in grammar(random)}
    return list(found)[:count]


def spelled(text: str, random: random.Random) -> str:
    text = " ".join(text.split()).replace(" ?", "?").rstrip(".")
    text = text.lower() if random.random() < 0.2 else text[0].upper() + text[1:]
    return text if text.endswith("?") or random.random() < 0.4 else f"{text}."


if __name__ == "__main__":
    main()
