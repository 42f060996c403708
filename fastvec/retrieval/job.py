"""`fastvec.search`: encodes queries as the texts of an output were encoded, and finds the nearest rows, exactly."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import MEMORY_BYTES, ChunkLimits
from fastvec.errors import InputError, UsageError, quoted
from fastvec.retrieval.exact import Best, best_rows
from fastvec.retrieval.filters import Filter
from fastvec.retrieval.hits import SearchReport, Shown, choose_shown, hits_of, hits_schema
from fastvec.retrieval.progress import SearchProgress
from fastvec.stores.address import is_remote
from fastvec.vectors.query_encoder import encoder_for, query_prompt
from fastvec.vectors.result_file import require_apart, require_result_file, result_file
from fastvec.vectors.source_texts import texts_at
from fastvec.vectors.stored import Vectors, open_vectors

if TYPE_CHECKING:  # imports torch, which a wrong option does not need
    from fastvec.encoder import Encoder

logger = logging.getLogger(__name__)
QUERIES_AT_ONCE = 4096  # that the vectors are read for; fewer if there are more hits than this
HITS_AT_ONCE = 1 << 20
TEXTS_AT_ONCE = 10_000  # in memory, if hits with texts are written to a file
MOST_HITS = 10_000


def search(
    files: str | Path | Sequence[str | Path],
    queries: str | Sequence[str],
    *,
    k: int = 10,
    encoder: "Encoder | None" = None,
    model: str | Path | None = None,
    adapters: Sequence[str | Path] = (),
    instruction: str | None = None,
    prompt_name: str | None = None,
    filter: str | None = None,
    keep: Sequence[str] | None = None,
    text: bool | None = None,
    vector_column: str | None = None,
    device: str = "auto",
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: Callable[[SearchProgress], None] = lambda _: None,
) -> SearchReport:
    """Find the `k` nearest rows of finished outputs for each query, by comparing it with all of them.

    Args:
        files: One or several outputs, or folders of shards, of the same model and settings.
        queries: One or several texts.
        k: How many rows to find.
        encoder: The model that made the vectors, if it is loaded; otherwise it is loaded.
        model, adapters: Where that model is, if it is not where its name in the output says.
        instruction, prompt_name: What stands before every query. None: the model's prompt named `query`; if it has
            none, what stood before the texts.
        filter: A condition on kept columns and `row`; see `fastvec.retrieval.filters`.
        keep: The kept columns to return; None returns all.
        text: Whether to return the texts of the rows, which are read from the inputs. None: if no column is returned.
        vector_column: Which vectors to search, if the outputs have several columns of them.
        device: Where the model runs and, for 64 queries or more, the comparison.
        output, overwrite: A .parquet, .arrow or .jsonl file for the hits instead, and whether to replace it.
        progress: Called after each block of rows.

    Raises:
        UsageError: An option cannot be used.
        InputError: The texts are asked for, and the inputs are not there or changed.
        ModelError: The model is not there, or is another.
        OutputError: A file is not a finished output or cannot be read, or the hits cannot be written.
        RefusedError: `output` exists.
    """
    texts = _checked([queries] if isinstance(queries, str) else list(queries), k)
    target = None if output is None else Path(output)
    if target is not None:
        require_result_file(target, overwrite=overwrite)
    with open_vectors([files] if isinstance(files, str | Path) else files, vector_column=vector_column) as vectors:
        require_apart([] if target is None else [target], vectors.paths)
        shown = _shown(vectors, keep, text)
        mask = None if filter is None else _mask(vectors, filter)
        encoder = encoder_for(vectors.first, encoder, model=model, adapters=adapters, device=device)
        prompt = query_prompt(vectors.first, encoder.settings, instruction, prompt_name)
        started = time.perf_counter()
        found = _search(vectors, encoder, texts, k, prompt, mask, shown, progress)
        hits = _written(found, target, hits_schema(vectors, shown))
        seconds, similarity = time.perf_counter() - started, encoder.settings.checkpoint.similarity
    name = None if output is None else str(output)
    return SearchReport(texts, rows=vectors.rows, similarity=similarity, seconds=seconds, hits=hits, output=name)


def read_queries(file: str | Path, column: str | None = None, *, output: str | None = None) -> list[str]:
    """Return the texts of a file of queries, of any format that `embed` reads.

    Raises InputError if it cannot be read, or a row has no text; UsageError if it is also the `output`.
    """
    if output is not None and not is_remote(file):
        require_apart([Path(output)], [Path(file)])
    corpus = open_corpus([file], column=column)
    texts: list[str] = []
    for chunk in corpus.chunks(ChunkLimits(rows=8192, bytes=MEMORY_BYTES)):
        if chunk.texts.null_count:
            row = chunk.first_row + int(np.flatnonzero(chunk.texts.is_null().to_numpy(zero_copy_only=False))[0])
            raise InputError(f"{file}: row {row} has no text in column {corpus.columns[0]}: a query needs one")
        for row, text in enumerate(chunk.texts.to_pylist(), start=chunk.first_row):
            if not text.strip():
                raise InputError(f"{file}: row {row}, counted from 0, is empty: a query needs a text")
            texts.append(text)
    return texts


def _checked(queries: list[str], k: int) -> list[str]:
    if not 1 <= k <= MOST_HITS:
        raise UsageError(f"k {k} is out of range: the minimum is 1, the maximum {MOST_HITS:,}")
    if not queries:
        raise UsageError("there is no query: give a text, or a file of texts with --queries")
    for number, query in enumerate(queries):
        if not isinstance(query, str):
            raise UsageError(f"query {number} is a {type(query).__name__}: expected a string")
        if not query.strip():
            name = "the query" if len(queries) == 1 else f"query {number}"
            raise UsageError(f"{name} is empty: give a text")
    return queries


def _mask(vectors: Vectors, text: str) -> npt.NDArray[np.bool_]:
    """Return which rows a filter passes. Raises UsageError if none does."""
    condition = Filter(text, vectors.schema)
    mask = np.zeros(vectors.rows, dtype=np.bool_)
    for begin, batch in vectors.batches(condition.columns):
        found = condition.mask(pa.Table.from_batches([batch]).replace_schema_metadata(None))
        mask[begin : begin + batch.num_rows] = found.to_numpy(zero_copy_only=False)
    if not mask.any():
        raise UsageError(f"no row passes the filter {quoted(text)}")
    return mask


def _shown(vectors: Vectors, keep: Sequence[str] | None, text: bool | None) -> Shown:
    """Return what to show, without texts that were not asked for if the inputs are not there any more."""
    shown = choose_shown(vectors, keep, text)
    if not shown.with_text or text or vectors.rows == 0:
        return shown
    try:
        texts_at(vectors, np.array([part.begin for part in vectors.parts if part.output.rows], dtype=np.int64))
    except InputError as error:
        logger.warning("texts are not shown: %s", error)
        return replace(shown, with_text=False)
    return shown


def _written(found: Iterator[pa.Table], target: Path | None, schema: pa.Schema) -> pa.Table | None:
    """Write the hits to a file, or return them if there is none."""
    if target is None:
        return pa.concat_tables(found)
    with result_file(target, schema) as write:
        for table in found:
            write(table)
    return None


def _search(
    vectors: Vectors,
    encoder: "Encoder",
    queries: Sequence[str],
    k: int,
    prompt: tuple[str | None, str | None],
    mask: npt.NDArray[np.bool_] | None,
    shown: Shown,
    progress: Callable[[SearchProgress], None],
) -> Iterator[pa.Table]:
    """Yield the hits of some queries after another."""
    total = len(queries) * vectors.rows
    step = max(min(QUERIES_AT_ONCE, HITS_AT_ONCE // k), 1)
    for begin in range(0, len(queries), step):
        some = queries[begin : begin + step]
        encoded = encoder.encode(some, *prompt)
        best = best_rows(
            vectors,
            encoded,
            k,
            function=encoder.settings.checkpoint.similarity,
            mask=mask,
            device=encoder.settings.device,
            progress=partial(_report, progress, begin * vectors.rows, len(some), total),
        )
        few = max(TEXTS_AT_ONCE // k, 1) if shown.with_text else step
        for first in range(0, len(some), few):
            part = Best(best.positions[first : first + few], best.scores[first : first + few])
            yield hits_of(vectors, part, shown, begin + first)


def _report(progress: Callable[[SearchProgress], None], before: int, queries: int, total: int, rows: int) -> None:
    progress(SearchProgress(done=before + queries * rows, total=total))
