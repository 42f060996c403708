"""Collect the training texts of the bundled model: sentences, clauses, passages and questions, shuffled.

    python -m recipes.bundled.texts -o texts.parquet --articles wiki.parquet --texts questions.parquet:question

Articles are split into sentences. Some sentences also yield their clauses, as queries are rarely whole sentences, and
some runs of neighbouring sentences become a passage; `--passages` adds long ones. Texts with a name or a number are
most of an encyclopedia but few of the questions people ask, so only `--named` of them are taken, half of these with a
rare word, as too few texts with that word would remain. Texts from `--texts` columns are all taken, unsplit, only cut
to 800 characters. Duplicates are dropped. The rows are in random order, so that the first n are a sample of all.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import ChunkLimits
from recipes.sentences import sentences_of, within

LIMITS = ChunkLimits(rows=512, bytes=4 << 20)
CLAUSE_END = re.compile(r"[,;:()]\s+|\s+[–—-]\s+")
CLAUSE_LENGTHS = (12, 90)  # characters
PASSAGE_LENGTH = 600  # characters, at most
LONG_PASSAGES = (400, 800)  # characters: the teacher reads 256 tokens
CLAUSE_SHARE, PASSAGE_SHARE = 0.1, 0.12
NAME = re.compile(r"(?<=.)[A-Z0-9]")
WORD = re.compile(r"\b[a-z]{4,}\b")  # lower case only: names do not count as rare words
RARE = range(5, 101)  # number of texts that contain the word
ROW_GROUP = 8192


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--articles", multiple=True, required=True, metavar="FILE", help="Parquet files with a text column.")
@click.option("--texts", multiple=True, metavar="FILE:COLUMN", help="Used unsplit, cut to 800 characters.")
@click.option(
    "--named",
    default=90_000,
    show_default=True,
    help="At most this many sentences of articles with a name or a number.",
)
@click.option("--passages", default=25_000, show_default=True, help="Long passages of articles to add.")
@click.option("--seed", default=0, show_default=True)
def main(output: Path, articles: tuple[str, ...], texts: tuple[str, ...], named: int, passages: int, seed: int) -> None:
    """Write one Parquet file of texts, in random order."""
    random = np.random.default_rng(seed)
    found = list(dict.fromkeys(of_articles(articles, random)))
    every = dict.fromkeys(text for text in found if NAME.search(text) is None)
    with_names = [text for text in found if NAME.search(text)]
    rare = rare_words(found)
    of_rare = [text for text in with_names if not rare.isdisjoint(WORD.findall(text))]
    for texts_of, most in (
        (of_rare, named // 2),
        (with_names, named - named // 2),
        (long_passages(articles, random), passages),
    ):
        every |= dict.fromkeys(drawn(texts_of, most, random))
    for name in texts:
        file, _, column = name.rpartition(":")
        for chunk in open_corpus([file], column=column).chunks(LIMITS):
            every |= {cut(text): None for text in chunk.texts.drop_null().to_pylist()}
    rows = list(every)
    order = random.permutation(len(rows))
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(output, schema) as writer:
        for begin in range(0, len(rows), ROW_GROUP):
            part = order[begin : begin + ROW_GROUP]
            writer.write_table(pa.table({"text": [rows[row] for row in part]}, schema))
    click.echo(f"{len(rows):,} texts, {sum(map(len, rows)) / len(rows):.0f} characters on average")


def drawn(texts: Iterable[str], most: int, random: np.random.Generator) -> list[str]:
    """Return at most `most` of the texts, different ones, drawn at random."""
    found = list(dict.fromkeys(texts))
    return [found[place] for place in random.permutation(len(found))[:most]]


def of_articles(files: tuple[str, ...], random: np.random.Generator) -> Iterator[str]:
    """Yield the sentences of all articles, and clauses and passages of some of them."""
    for chunk in open_corpus(files, column="text").chunks(LIMITS):
        for article in chunk.texts.drop_null().to_pylist():
            for paragraph in article.splitlines():
                yield from of_paragraph(paragraph, random)


def rare_words(texts: Iterable[str]) -> set[str]:
    """Return the words that occur in few texts, but in more than a typing error would."""
    counts = Counter(word for text in texts for word in set(WORD.findall(text)))
    return {word for word, count in counts.items() if count in RARE}


def long_passages(files: tuple[str, ...], random: np.random.Generator) -> Iterator[str]:
    """Yield runs of whole lines of articles, each with a new random length, cut to 800 characters."""
    for chunk in open_corpus(files, column="text").chunks(LIMITS):
        for article in chunk.texts.drop_null().to_pylist():
            passage, wanted = "", int(random.integers(*LONG_PASSAGES))
            for line in article.splitlines():
                passage = f"{passage} {line}".strip()
                if len(passage) >= wanted:
                    yield cut(passage)
                    passage, wanted = "", int(random.integers(*LONG_PASSAGES))


def of_paragraph(paragraph: str, random: np.random.Generator) -> Iterator[str]:
    """Yield the sentences of a paragraph, and clauses and passages of some of them."""
    sentences = sentences_of(paragraph)
    for place, sentence in enumerate(sentences):
        if not within(sentence):
            continue
        yield sentence
        chosen = random.random()
        if chosen < CLAUSE_SHARE:
            clauses = [clause.strip(" .\"'") for clause in CLAUSE_END.split(sentence)]
            yield from (clause for clause in clauses if within(clause, CLAUSE_LENGTHS))
        elif chosen < CLAUSE_SHARE + PASSAGE_SHARE:
            passage = " ".join(sentences[place : place + 2 + int(random.integers(4))])
            if passage != sentence and len(passage) <= PASSAGE_LENGTH:
                yield passage


def cut(text: str) -> str:
    """Return the text, or its first words if it is longer than 800 characters."""
    most = LONG_PASSAGES[1]
    return text if len(text) <= most else text[: most + 1].rpartition(" ")[0] or text[:most]


if __name__ == "__main__":
    main()
