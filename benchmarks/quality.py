"""Runs `fastvec eval` on public tasks, with two more baselines: the means of each model's own input embeddings.

    PYTHONPATH=.:kernels python -m benchmarks.quality DATA --model simcse --model mntp -o results

Without `--model` the bundled model is judged.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.engines.quality_tasks import load_tasks
from fastvec import Encoder
from fastvec.encoding.similarity import unit
from fastvec.errors import FastvecError, ModelError
from fastvec.evaluation.baselines import Bm25, tfidf
from fastvec.evaluation.contestants import Contestant, Fitted, Model
from fastvec.evaluation.evaluate import judged, write

RARE = 1e-3  # a token with this share of all tokens has weight 1/2 in the weighted mean (Arora et al., 2017)


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", "models", multiple=True, help="A folder or hub id; repeat to compare.")
@click.option("--other", "others", multiple=True, help="A model that only sentence-transformers loads, such as a BERT.")
@click.option("--task", "names", multiple=True, help="Name of a task to judge; repeat for more. [default: all]")
@click.option("--dtype", default="auto", show_default=True)
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for eval.json and eval.png."
)
def main(
    data: Path,
    models: tuple[str, ...],
    others: tuple[str, ...],
    names: tuple[str, ...],
    dtype: str,
    output: Path | None,
) -> None:
    """Judge models and baselines on the tasks whose files are in DATA."""
    try:
        tasks = [task for task in load_tasks(data) if not names or task.name in names]
        report = judged(tasks, contestants(models or (None,), others, dtype))
        click.echo(report)
        if output is not None:
            write(report, output)
    except FastvecError as error:
        raise click.ClickException(str(error)) from error


def contestants(models: Sequence[str | None], others: Sequence[str], dtype: str) -> Iterator[Contestant]:
    """Yield TF-IDF and BM25, the other models, then each model, preceded by the means of its input embeddings."""
    yield tfidf()
    yield Bm25()
    yield from map(Other, others)
    for model in models:
        encoder = Encoder.from_pretrained(model, dtype=dtype)
        name = encoder.settings.checkpoint.name
        yield Fitted(f"{name}, mean of tokens", partial(token_means, encoder, weighted=False))
        yield Fitted(f"{name}, weighted mean", partial(token_means, encoder, weighted=True))
        yield Model(encoder)


class Other(Contestant):
    """A model as sentence-transformers runs it, with its prompts for queries and documents."""

    def __init__(self, model: str) -> None:
        from sentence_transformers import SentenceTransformer

        super().__init__(Path(model).name)
        try:
            self._model = SentenceTransformer(model)
        except (OSError, ValueError) as error:
            raise ModelError(f"{model}: sentence-transformers cannot load it: {str(error).splitlines()[0]}") from error

    def vectors(self, first: Sequence[str], second: Sequence[str]) -> tuple[Any, Any]:
        return self._model.encode(list(first)), self._model.encode(list(second))

    def retrieval_vectors(self, queries: Sequence[str], documents: Sequence[str]) -> tuple[Any, Any]:
        return self._model.encode_query(list(queries)), self._model.encode_document(list(documents))


def token_means(encoder: Encoder, texts: list[str], *, weighted: bool) -> npt.NDArray[Any]:
    """Return unit vectors [n, H]: mean input embeddings; `weighted` gives tokens rare in `texts` more weight."""
    table = encoder.input_embeddings()
    tokens = encoder.tokenizer()(texts)
    shares = np.bincount(tokens.ids, minlength=len(table)) / len(tokens.ids)
    weights = RARE / (RARE + shares) if weighted else np.ones(len(table))
    scaled = table[tokens.ids] * weights[tokens.ids, None]
    return unit(np.add.reduceat(scaled, tokens.offsets[:-1], axis=0))


if __name__ == "__main__":
    main()
