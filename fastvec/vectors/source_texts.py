"""Finds the texts that vectors were made of, in the inputs that an output names."""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import MEMORY_BYTES, ChunkLimits, Corpus
from fastvec.errors import InputError, UsageError
from fastvec.output.reader import CHUNK_TEXT, Output
from fastvec.vectors.stored import Vectors

TEXT = CHUNK_TEXT[0]
NEAR_ROWS = 256  # rows between two texts that are read too, rather than begun anew


def texts_at(vectors: Vectors, positions: npt.NDArray[np.int64]) -> list[str | None]:
    """Return the texts at `positions` [n], in this order; None where a row has none.

    A passage is cut out of its row's text. What an output contains itself, with `--chunk-text`, is taken from there.
    Raises InputError if the inputs are not there, changed since they were embedded, or are unknown, as those of joined
    outputs with different text columns are.
    """
    if all(TEXT in part.output.schema.names for part in vectors.parts):
        texts: list[str | None] = vectors.take(positions, [TEXT])[TEXT].to_pylist()
        return texts
    places = vectors.take(positions, vectors.row_columns)
    found: list[str | None] = [None] * len(positions)
    ends = np.array([part.end for part in vectors.parts])
    part_of = np.searchsorted(ends, positions, side="right")
    # shards have the same inputs, which are opened once
    inputs_of = {index: _identity(vectors.parts[index].output) for index in np.unique(part_of).tolist()}
    for inputs in dict.fromkeys(inputs_of.values()):
        own = [i for i, part in enumerate(part_of.tolist()) if inputs_of[part] == inputs]
        part = next(part for index, part in enumerate(vectors.parts) if inputs_of.get(index) == inputs)
        corpus = _open(part.output, vectors.column)
        rows = places["row"].take(pa.array(own)).to_numpy()
        for i, text in zip(own, _read(corpus, rows), strict=True):
            found[i] = _passage(text, places, i)
    return found


def _identity(output: Output) -> str:
    return json.dumps([output.own.get("inputs"), output.fingerprint.get("inputs"), output.fingerprint.get("merged")])


def _open(output: Output, vector_column: str) -> Corpus:
    """Open the inputs of an output as they were embedded. Raises InputError."""
    column, template = output.own.get("column"), output.own.get("template")
    if column is None and template is None:
        raise InputError(f"{output.path}: which column its texts are is not recorded: it was joined of several outputs")
    if column is not None and len(output.vector_columns) > 1:
        column = json.loads(column)[output.vector_columns.index(vector_column)]
    try:
        corpus = open_corpus([file["uri"] for file in output.inputs], column=column, template=template)
    except UsageError as error:  # a store whose package is missing, or standard input
        raise InputError(str(error)) from error
    _require_unchanged(output, corpus)
    return corpus


def _require_unchanged(output: Output, corpus: Corpus) -> None:
    begun = output.fingerprint
    jobs: Sequence[Mapping[str, Any]] = begun.get("merged") or [begun]
    then = [tuple(file[:3]) for job in jobs for file in job.get("inputs", ())]
    now = [(file.uri, file.size, file.version) for file in corpus.files]
    if then != now:
        changed = next((b for a, b in zip(then, now, strict=False) if a != b), now[0] if now else ("no file",))
        raise InputError(f"{changed[0]} changed since it was embedded: its texts may be others")


def _read(corpus: Corpus, rows: npt.NDArray[np.int64]) -> list[str | None]:
    """Return the texts of `rows`, in this order. Rows near each other are read at once."""
    limits = ChunkLimits(rows=1024, bytes=MEMORY_BYTES)
    wanted = np.unique(rows)
    run_of = np.cumsum(np.diff(wanted, prepend=wanted[:1]) > NEAR_ROWS)
    texts: dict[int, str | None] = {}
    for _, run in groupby(zip(run_of.tolist(), wanted.tolist(), strict=True), key=lambda pair: pair[0]):
        inside = [row for _, row in run]
        for chunk in corpus.chunks(limits, first_row=inside[0], end_row=inside[-1] + 1):
            for row in inside:
                if 0 <= row - chunk.first_row < len(chunk.texts):
                    texts[row] = chunk.texts[row - chunk.first_row].as_py()
    return [texts.get(row) for row in rows.tolist()]


def _passage(text: str | None, places: pa.Table, index: int) -> str | None:
    if text is None or "char_start" not in places.schema.names:
        return text
    begin, end = (places[name][index].as_py() for name in ("char_start", "char_end"))
    return text if begin is None else text[begin:end]
