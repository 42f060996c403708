"""Judges models and baselines on tasks, and writes what it finds."""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from fastvec.encoder import Encoder
from fastvec.errors import UsageError
from fastvec.evaluation import files
from fastvec.evaluation.baselines import BM25, TFIDF, Bm25, tfidf
from fastvec.evaluation.bootstrap import SAMPLES, Measured
from fastvec.evaluation.contestants import Contestant, Model, model_name
from fastvec.evaluation.labels import Classification
from fastvec.evaluation.report import Difference, EvalReport, Score, TaskInfo, draw
from fastvec.evaluation.retrieval import Retrieval
from fastvec.evaluation.tasks import Task
from fastvec.output.convert import require_replaceable
from fastvec.settings import EncoderSettings, resolve_settings
from fastvec.system.durable_files import make_folder, replacing, translated_os_errors, write_at

logger = logging.getLogger(__name__)

OUTPUTS = ("eval.json", "eval.png")
PACKAGES = {
    "bm25s": "bm25s",
    "matplotlib": "matplotlib",
    "pytrec_eval": "pytrec-eval-terrier",
    "sklearn": "scikit-learn",
}

Given = str | Path | Sequence[str | Path]


def evaluate(
    models: str | Path | Encoder | Sequence[str | Path | Encoder | None] | None = None,
    *,
    adapters: Sequence[str | Path] = (),
    baselines: bool = True,
    instruction: str | None = None,
    query_instruction: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    dims: int | None = None,
    max_length: int | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    show_progress_bar: bool = False,
    **data: Any,
) -> EvalReport:
    """Judge one or several models, and baselines, on the tasks in the user's files.

    Args:
        models: Folders or hub ids, or loaded encoders; None is the bundled model. One is loaded after another.
        adapters: PEFT folders or hub ids, merged in this order into the model, of which there is one, not loaded yet.
        baselines: Judge TF-IDF too, and for retrieval BM25.
        instruction: An instruction before every text, except in retrieval.
        query_instruction: An instruction before every query, instead of the checkpoint's prompt for queries.
        device, dtype, dims, max_length: Those of `Encoder.from_pretrained`, for models that are not loaded yet.
        output: A folder for `eval.json` and `eval.png`, which is made if it does not exist.
        overwrite: Replace these files.
        show_progress_bar: Show on a terminal how many texts are encoded.
        data: The tasks, as `read_tasks` takes them.

    Raises UsageError for options that contradict each other, for lack of a task, for two models of the same name, for
    one that compares by Manhattan distance if a task searches, and if a package is missing; InputError for a file that
    is not as expected; ModelError; and with `output` RefusedError and OutputError.
    """
    given = [models] if models is None or isinstance(models, (str, Path, Encoder)) else list(models)
    if adapters and (len(given) != 1 or isinstance(given[0], Encoder)):
        raise UsageError("--adapter is for one model, which is not loaded yet: give one --model, as a folder or hub id")
    _require_packages(data, baselines=baselines, plot=output is not None)
    if output is not None:
        _require_replaceable(Path(output), overwrite=overwrite)
    tasks = read_tasks(**data)
    resolved = [
        one
        if isinstance(one, Encoder)
        else resolve_settings(one, adapters=adapters, device=device, dtype=dtype, dims=dims, max_length=max_length)
        for one in given
    ]
    _require_judgeable([one.settings if isinstance(one, Encoder) else one for one in resolved], tasks)
    if output is not None:  # before hours of judging, but after the errors that are found at once
        with translated_os_errors(Path(output)):
            make_folder(Path(output))
    model = partial(
        Model, instruction=instruction, query_instruction=query_instruction, show_progress_bar=show_progress_bar
    )
    encoders = (one if isinstance(one, Encoder) else Encoder(one) for one in resolved)
    report = judged(tasks, _contestants(map(model, encoders), baselines=baselines))
    if output is not None:
        write(report, Path(output))
    return report


def read_tasks(
    *,
    pairs: Given = (),
    pair_columns: Sequence[str] | None = None,
    beir: Given = (),
    queries: str | Path | None = None,
    corpus: str | Path | None = None,
    qrels: str | Path | None = None,
    train: str | Path | None = None,
    test: str | Path | None = None,
    clusters: Given = (),
    text_column: str = "text",
    label_column: str = "label",
) -> list[Task]:
    """Read the tasks from files, which are Parquet, Arrow, JSON lines, CSV or TSV.

    Args:
        pairs: Files of pairs of texts with scores.
        pair_columns: Their columns: two texts and a score. [default: sentence1, sentence2, score]
        beir: Folders with corpus.jsonl, queries.jsonl and qrels/test.tsv.
        queries, corpus, qrels: The files of one more collection: see `files.read_retrieval`.
        train, test: Files of texts with labels.
        clusters: Files of texts with labels.
        text_column, label_column: The columns of files with labels.

    Raises UsageError if there is no task, or a part of one is missing; InputError.
    """
    retrieval = {"queries": queries, "corpus": corpus, "qrels": qrels}
    classification = {"train": train, "test": test}
    for parts in (retrieval, classification):
        if any(parts.values()) and not all(parts.values()):
            names, missing = (
                [f"--{name}" for name in own] for own in (parts, [one for one in parts if not parts[one]])
            )
            raise UsageError(f"{' and '.join(names)} are needed together: add {' and '.join(missing)}")
    named: list[tuple[str, Task]] = [(one, files.read_pairs(one, pair_columns)) for one in _several(pairs)]
    named += [(one, files.read_beir(one)) for one in _several(beir)]
    if queries and corpus and qrels:
        named.append((str(corpus), files.read_retrieval(str(queries), str(corpus), str(qrels))))
    if train and test:
        named.append((str(test), files.read_classification(str(train), str(test), text_column, label_column)))
    named += [(one, files.read_clusters(one, text_column, label_column)) for one in _several(clusters)]
    if not named:
        raise UsageError("no task was given: --pairs, --beir, --queries, --train or --clusters")
    return list(_named_apart(named))


def _several(given: Given) -> list[str]:
    return [str(given)] if isinstance(given, (str, Path)) else list(map(str, given))


def _named_apart(named: Sequence[tuple[str, Any]]) -> Iterator[Task]:
    """Yield the tasks; those of the same name are named by their paths, and their kind if one path has several."""
    names, paths = (Counter(own) for own in ([task.name for _, task in named], [path for path, _ in named]))
    for path, task in named:
        apart = path if paths[path] == 1 else f"{path} ({task.kind})"
        yield task if names[task.name] == 1 else replace(task, name=apart)


def _require_packages(data: dict[str, Any], *, baselines: bool, plot: bool) -> None:
    searches = any(data.get(name) for name in ("beir", "queries"))
    needed = {
        "bm25s": baselines and searches,
        "matplotlib": plot,
        "pytrec_eval": searches,
        "sklearn": baselines or bool(data.get("clusters")),
    }
    missing = [PACKAGES[module] for module, is_needed in needed.items() if is_needed and find_spec(module) is None]
    if missing:
        raise UsageError(f"these tasks need {' and '.join(missing)}: pip install 'fastvec[eval]'")


def _require_replaceable(folder: Path, *, overwrite: bool) -> None:
    if folder.exists():
        for name in OUTPUTS:
            require_replaceable(folder / name, overwrite=overwrite)


def _require_judgeable(models: Sequence[EncoderSettings], tasks: Sequence[Task]) -> None:
    """Raise UsageError for names that are not all different, and for what a task cannot judge."""
    for name, times in Counter([TFIDF, BM25, *map(model_name, models)]).items():
        if times > 1:
            raise UsageError(f"{name} takes part twice: give each model once")
    searching = next((task.name for task in tasks if isinstance(task, (Classification, Retrieval))), None)
    for model in models:
        if searching is not None and model.checkpoint.similarity == "manhattan":
            raise UsageError(
                f"{model_name(model)} compares by Manhattan distance, by which eval does not search, as {searching} "
                "needs: give pairs or clusters alone"
            )


def _contestants(models: Iterable[Contestant], *, baselines: bool) -> Iterator[Contestant]:
    if baselines:
        yield from (tfidf(), Bm25())
    yield from models


def judged(tasks: Sequence[Task], contestants: Iterable[Contestant]) -> EvalReport:
    """Judge each contestant, made when it is its turn, on each task; BM25 is judged on retrieval only.

    Contestants and tasks have different names. A contestant is released before the next one is made.
    Scores are compared with those of the best baseline, and of the first contestant that is none.
    """
    begin = time.monotonic()
    found: dict[tuple[str, str], dict[str, Measured]] = {
        (task.name, measure): {} for task in tasks for measure in task.measures
    }
    baselines: dict[str, bool] = {}
    models = []
    for contestant in contestants:
        baselines[contestant.name] = contestant.baseline
        models += [] if contestant.about is None else [contestant.about]
        for task in tasks:
            if isinstance(contestant, Bm25) and not isinstance(task, Retrieval):
                continue
            if not contestant.baseline:
                logger.info("%s on %s", contestant.name, task.name)
            for measure, measured in task.judge(contestant).items():
                found[task.name, measure][contestant.name] = measured
        del contestant  # otherwise it stays in memory until the next one is loaded
    took_part = {name for own in found.values() for name in own}  # not BM25, if there is nothing to search
    return EvalReport(
        tasks=tuple(TaskInfo(name=task.name, kind=task.kind, size=task.size, notes=task.notes) for task in tasks),
        names=tuple(sorted((name for name in baselines if name in took_part), key=lambda name: not baselines[name])),
        scores=tuple(score for column, own in found.items() for score in _scores(column, own, baselines)),
        models=tuple(models),
        samples=SAMPLES,
        seconds=time.monotonic() - begin,
    )


def _scores(column: tuple[str, str], found: dict[str, Measured], baselines: dict[str, bool]) -> Iterator[Score]:
    """Yield the score of each contestant by one measure, with its differences."""
    best = max((name for name in found if baselines[name]), key=lambda name: found[name].value, default=None)
    first = next((name for name in found if not baselines[name]), None)
    for name, measured in found.items():
        low, high = measured.interval
        others = [] if baselines[name] else [other for other in (best, first) if other not in (None, name)]
        yield Score(
            task=column[0],
            measure=column[1],
            name=name,
            baseline=baselines[name],
            value=measured.value,
            low=low,
            high=high,
            differences=tuple(_difference(other, measured.minus(found[other])) for other in others if other),
        )


def _difference(other: str, measured: Measured) -> Difference:
    low, high = measured.interval
    return Difference(other=other, value=measured.value, low=low, high=high)


def write(report: EvalReport, folder: Path) -> None:
    """Write eval.json and eval.png, each whole or not at all, to a folder, which is made if it does not exist."""
    picture = BytesIO()
    draw(report, picture)
    contents = (json.dumps(report.to_json(), indent=1).encode(), picture.getvalue())
    with translated_os_errors(folder):
        make_folder(folder)
        for name, content in zip(OUTPUTS, contents, strict=True):
            with replacing(folder / name) as fd:
                write_at(fd, 0, content)
