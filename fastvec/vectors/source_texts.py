"""Finds the texts that vectors were made of, in the inputs that an output names."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.corpus.copies import STDIN
from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import MEMORY_BYTES, ChunkLimits, Corpus
from fastvec.errors import InputError, UsageError
from fastvec.output.reader import CHUNK_TEXT, Output
from fastvec.vectors.stored import Vectors

TEXT = CHUNK_TEXT[0]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Input:
    """An input file as it was embedded, and what of its rows was the text."""

    uri: str
    size: int
    version: int | str
    first_row: int
    column: str | None
    template: str | None

    def open(self) -> Corpus:
        """Raises InputError if the file is not there, or changed."""
        if self.uri == STDIN:
            raise InputError("the texts were read from standard input, which is not kept")
        try:
            corpus = open_corpus([self.uri], column=self.column, template=self.template)
        except UsageError as error:  # such as a store whose package is missing
            raise InputError(str(error)) from error
        (file,) = corpus.files[:1]
        if len(corpus.files) > 1 or (file.size, file.version) != (self.size, self.version):
            raise InputError(f"{self.uri} has another size or date than when it was embedded: its texts may be others")
        return corpus


def texts_at(vectors: Vectors, positions: Rows) -> list[str | None]:
    """Return the texts at `positions` [n], in this order; None where a row has none.

    A passage is cut out of its row's text. What an output contains itself, with `--chunk-text`, is taken from there.
    Only the input files that have one of the rows are opened. Raises InputError if one is not there or changed since
    it was embedded, or if it is not known which column the texts are, as after a merge of outputs that differ in it.
    """
    if all(TEXT in part.output.schema.names for part in vectors.parts):
        texts: list[str | None] = vectors.take(positions, [TEXT])[TEXT].to_pylist()
        return texts
    places = vectors.take(positions, vectors.row_columns)
    rows = places["row"].to_numpy()
    indices: dict[_Input, list[int]] = {}  # shards have the same inputs
    part_of = np.searchsorted([part.end for part in vectors.parts], positions, side="right")
    for number in np.unique(part_of).tolist():
        inputs = _inputs(vectors.parts[number].output, vectors.column)
        own = np.flatnonzero(part_of == number)
        file_of = np.searchsorted([file.first_row for file in inputs], rows[own], side="right") - 1
        for index, file in zip(own.tolist(), file_of.tolist(), strict=True):
            indices.setdefault(inputs[file], []).append(index)
    found: list[str | None] = [None] * len(positions)
    for file, some in indices.items():
        if file not in vectors.opened:  # some formats are read whole to count their rows
            vectors.opened[file] = file.open()
        for index, text in zip(some, _read(vectors.opened[file], rows[some] - file.first_row), strict=True):
            found[index] = _passage(text, places, index)
    return found


def _inputs(output: Output, vector_column: str) -> list[_Input]:
    column, template = output.own.get("column"), output.own.get("template")
    if column is None and template is None:
        raise InputError(f"{output.path} does not say which column its texts are: it was joined of several outputs")
    if column is not None and len(output.vector_columns) > 1:
        column = json.loads(column)[output.vector_columns.index(vector_column)]
    jobs: Sequence[Mapping[str, Any]] = output.fingerprint.get("merged") or [output.fingerprint]
    stated = [file for job in jobs for file in job["inputs"]]
    return [
        _Input(uri, size, version, own["first_row"], column, template)
        for own, (uri, size, version) in zip(output.inputs, stated, strict=True)
        if own["rows"]  # an empty file has the first row of the next one
    ]


def _read(corpus: Corpus, rows: Rows) -> list[str | None]:
    """Return the texts of `rows` [n] of a file, in this order, from one pass over the groups that have any."""
    wanted, place = np.unique(rows, return_inverse=True)
    texts: list[str | None] = []
    begins = [begin for begin, _ in corpus.groups] if corpus.seeks else [0]
    group_of = np.searchsorted(begins, wanted, side="right")
    for run in np.split(wanted, np.flatnonzero(np.diff(group_of) > 1) + 1):
        texts += _run(corpus, run)
    return [texts[index] for index in place.tolist()]


def _run(corpus: Corpus, rows: Rows) -> Iterator[str | None]:
    """Yield the texts of `rows`, which ascend. All rows between them are read."""
    limits = ChunkLimits(rows=1024, bytes=MEMORY_BYTES)
    for chunk in corpus.chunks(limits, first_row=int(rows[0]), end_row=int(rows[-1]) + 1):
        begin, end = np.searchsorted(rows, [chunk.first_row, chunk.first_row + len(chunk.texts)])
        yield from chunk.texts.take(pa.array(rows[begin:end] - chunk.first_row)).to_pylist()


def _passage(text: str | None, places: pa.Table, index: int) -> str | None:
    if text is None or "char_start" not in places.schema.names:
        return text
    begin, end = (places[name][index].as_py() for name in ("char_start", "char_end"))
    return text if begin is None else text[begin:end]
