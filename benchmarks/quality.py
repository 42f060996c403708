"""Scores the quality of vectors: models against TF-IDF and the means of their own input embeddings, in one run.

    PYTHONPATH=.:kernels python -m benchmarks.quality DATA --model simcse --model mntp -o results

Each contestant embeds the texts of each task once. Scores, and their differences from TF-IDF, have a 95 % bootstrap
interval over pairs, queries or questions. TF-IDF is fitted on the task's own texts. Without `--model` the bundled model
is scored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.engines.quality_tasks import Embed, Task, load_tasks
from benchmarks.reporting.plots import picture
from benchmarks.reporting.results import environment, write_json
from fastvec import Encoder
from fastvec.system.libraries import quiet_libraries

Array = npt.NDArray[Any]
TFIDF = "TF-IDF"
SAMPLES = 1000
RARE = 1e-3  # a token with this share of all tokens has weight 1/2 in the weighted mean (Arora et al., 2017)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A model's score on a task, times 100, with its interval and its difference from TF-IDF."""

    task: str
    model: str
    value: float
    interval: tuple[float, float]
    against_tfidf: tuple[float, float, float]  # difference, low, high

    def __str__(self) -> str:
        low, high = self.interval
        difference, least, most = self.against_tfidf
        margin = "" if self.model == TFIDF else f"{difference:+7.1f} ({least:+.1f} to {most:+.1f})"
        return f"{self.task:12} {self.model:36} {self.value:5.1f} ({low:.1f} to {high:.1f}) {margin}"


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", "models", multiple=True, help="A folder or hub id; repeat to compare.")
@click.option("--task", "names", multiple=True, help="Name of a task to score; repeat for more. [default: all]")
@click.option("--dtype", default="auto", show_default=True)
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for quality.json and quality.png."
)
def main(data: Path, models: tuple[str, ...], names: tuple[str, ...], dtype: str, output: Path | None) -> None:
    """Score models and baselines on the tasks whose files are in DATA."""
    tasks = [task for task in load_tasks(data) if not names or task.name in names]
    scores: list[Score] = []
    with quiet_libraries():
        encoders = [Encoder.from_pretrained(model, dtype=dtype) for model in models or (None,)]
    for task in tasks:
        found = {name: task.items(embed(task.texts)) for name, embed in contestants(encoders)}
        for name in found:
            scores.append(scored(task, name, found))
            click.echo(scores[-1])
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        measures = {task.name: task.measure for task in tasks}
        rows = [asdict(score) | {"measure": measures[score.task]} for score in scores]
        write_json(output / "quality.json", {"environment": environment(), "scores": rows})
        plot(scores, measures, output / "quality.png")


def contestants(encoders: Sequence[Encoder]) -> Iterator[tuple[str, Embed]]:
    """Yield names and embedding functions: TF-IDF, then each model, preceded by the means of its input embeddings."""
    yield TFIDF, tfidf
    for encoder in encoders:
        name = encoder.settings.checkpoint.name
        yield f"{name}, mean of tokens", partial(token_means, encoder, weighted=False)
        yield f"{name}, weighted mean", partial(token_means, encoder, weighted=True)
        yield name, encoder.encode


def tfidf(texts: Sequence[str]) -> Any:
    """Return a sparse matrix of unit rows from scikit-learn's TfidfVectorizer with its defaults, fitted on `texts`."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer().fit_transform(texts)


def token_means(encoder: Encoder, texts: Sequence[str], *, weighted: bool) -> Array:
    """Return unit vectors [n, H]: mean input embeddings; `weighted` gives tokens rare in `texts` more weight."""
    table = encoder.input_embeddings()
    tokens = encoder.tokenizer()(list(texts))
    shares = np.bincount(tokens.ids, minlength=len(table)) / len(tokens.ids)
    weights = RARE / (RARE + shares) if weighted else np.ones(len(table))
    scaled = table[tokens.ids] * weights[tokens.ids, None]
    sums = np.add.reduceat(scaled, tokens.offsets[:-1], axis=0)
    unit: Array = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return unit


def scored(task: Task, name: str, found: dict[str, Array]) -> Score:
    """Return the score of `name`; its intervals use the same bootstrap samples of items for every contestant."""
    items, baseline = found[name], found[TFIDF]
    random = np.random.default_rng(0)
    samples = [random.integers(len(items), size=len(items)) for _ in range(SAMPLES)]
    values = 100 * np.array([task.score(items[sample]) for sample in samples])
    differences = values - 100 * np.array([task.score(baseline[sample]) for sample in samples])
    value, base = 100 * task.score(items), 100 * task.score(baseline)
    return Score(
        task=task.name,
        model=name,
        value=value,
        interval=_bounds(values),
        against_tfidf=(value - base, *_bounds(differences)),
    )


def _bounds(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return low, high


def plot(scores: Sequence[Score], measures: dict[str, str], path: Path) -> None:
    """Plot the scores as bars with their intervals, one plot per task."""
    with picture(path, columns=len(measures), figsize=(5 * len(measures), 4), sharey=True) as (_, axes):
        for axis, (task, measure) in zip(axes.flat, measures.items(), strict=True):
            own = [score for score in scores if score.task == task][::-1]
            errors = np.abs(np.array([score.interval for score in own]).T - [score.value for score in own])
            colors = ["C7" if score.model == TFIDF else "C0" for score in own]
            axis.barh([score.model for score in own], [score.value for score in own], xerr=errors, color=colors)
            axis.set(title=task, xlabel=measure)


if __name__ == "__main__":
    main()
