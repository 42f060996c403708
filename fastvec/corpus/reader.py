"""Corpus files to chunks of texts, in order, with their position.

A chunk is a run of consecutive rows over all files. Where it ends depends on nothing but the rows from its first one
on, not on files or row groups: a run that resumes at a chunk's first row cuts the very same chunks.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import types

from fastvec.corpus.columns import (
    decoded,
    field_at,
    holds_text,
    is_binary,
    is_string,
    path_to,
    plain_type,
    repaired,
    row_bytes,
)
from fastvec.corpus.formats import Source, open_source
from fastvec.corpus.locations import find_files
from fastvec.errors import InputError, UsageError

logger = logging.getLogger(__name__)

TEXT_NAMES = ("text", "content", "body", "document", "passage", "sentence")
MAX_CHUNK_BYTES = 1 << 29  # a repaired byte takes three: a column of strings stays under 2 GiB, where its offsets end


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkLimits:
    """A chunk closes before the row that would pass either limit; a row larger than `bytes` is alone in its chunk.

    `bytes` counts the text (UTF-8) and the kept columns, decoded.
    """

    rows: int
    bytes: int

    def __post_init__(self) -> None:
        if self.rows < 1 or not 1 <= self.bytes <= MAX_CHUNK_BYTES:
            raise ValueError(f"a chunk takes at least 1 row and 1 to {MAX_CHUNK_BYTES} bytes, got {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Consecutive rows [n]: `texts` is a large_string array of valid UTF-8 with its nulls, `kept` the kept columns.

    `first_row` counts over all files; `repaired` is the number of texts that were not valid UTF-8.
    """

    index: int
    first_row: int
    texts: pa.Array
    kept: pa.RecordBatch
    repaired: int


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFile:
    """One file of a corpus: `rows` of its rows are used, and they begin at row `first_row` of the corpus."""

    uri: str
    size: int
    mtime_ns: int
    first_row: int
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """The files of a job, opened and checked: their text column, what is kept beside it, how many rows there are."""

    files: tuple[InputFile, ...]
    column: str
    kept_schema: pa.Schema
    rows: int
    column_reason: str  # why this column, where none was named
    _sources: tuple[Source, ...] = field(repr=False)

    def say_column(self) -> None:
        """Name the column that was taken in a line, where it was not asked for."""
        if self.column_reason:
            logger.info("text column: %s, %s", self.column, self.column_reason)

    def chunks(
        self, limits: ChunkLimits, *, first_row: int = 0, first_index: int = 0, end_row: int | None = None
    ) -> Iterator[Chunk]:
        """The rows from `first_row` on, before `end_row`, cut by `limits`; files before that row are not opened.

        Raises InputError where a file cannot be read or changed since the corpus was opened.
        """
        index = first_index
        pieces: list[pa.RecordBatch] = []
        rows = size = 0
        for batch in self._batches(first_row, self.rows if end_row is None else end_row):
            sizes = np.sum([row_bytes(column) for column in batch.columns], axis=0)
            ends = np.concatenate([[0], np.cumsum(sizes)])
            start = 0
            while start < batch.num_rows:
                end = int(np.searchsorted(ends, ends[start] + limits.bytes - size, side="right")) - 1
                end = min(end, start + limits.rows - rows)
                end = max(end, start if rows else start + 1)  # the first row always fits, however large
                pieces.append(self._decoded(batch.slice(start, end - start)))
                rows, size = rows + end - start, size + int(ends[end] - ends[start])
                start = end
                if rows == limits.rows or start < batch.num_rows:
                    yield self._chunk(index, first_row, pieces)
                    index, first_row = index + 1, first_row + rows
                    pieces, rows, size = [], 0, 0
        if rows:
            yield self._chunk(index, first_row, pieces)

    def locate(self, row: int) -> tuple[str, int]:
        """The file and the row group, or record batch of an Arrow file, that hold a row of the corpus."""
        for file, source in zip(self.files, self._sources, strict=True):
            if file.first_row <= row < file.first_row + file.rows:
                return file.uri, source.group_of(row - file.first_row)[0]
        raise IndexError(f"row {row} is not among the corpus's {self.rows} rows")

    @property
    def groups(self) -> list[tuple[int, int]]:
        """The first row and the end of every row group, or record batch of an Arrow file."""
        bounds: list[tuple[int, int]] = []
        for file, source in zip(self.files, self._sources, strict=True):
            ends = np.minimum(np.cumsum(source.group_rows), file.rows) + file.first_row
            begins = np.concatenate([[file.first_row], ends])[:-1]
            bounds += [(int(begin), int(end)) for begin, end in zip(begins, ends, strict=True) if begin < end]
        return bounds

    def _batches(self, first_row: int, end_row: int) -> Iterator[pa.RecordBatch]:
        """The text column and the kept ones, as the files have them."""
        columns = list(dict.fromkeys([self.column, *self.kept_schema.names]))
        for file, source in zip(self.files, self._sources, strict=True):
            skip = max(first_row - file.first_row, 0)
            missing = min(file.rows, end_row - file.first_row) - skip
            if missing <= 0:
                continue
            for batch in source.batches(columns, first_row=skip):
                yield batch.slice(0, missing)
                missing -= batch.num_rows
                if missing <= 0:
                    break
            source.require_unchanged()

    def _decoded(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        text = decoded(batch[self.column], pa.large_binary())
        kept = [decoded(batch[column.name], column.type) for column in self.kept_schema]
        return pa.RecordBatch.from_arrays([text, *kept], [self.column, *self.kept_schema.names])

    def _chunk(self, index: int, first_row: int, pieces: list[pa.RecordBatch]) -> Chunk:
        rows = pa.concat_batches(pieces)
        texts, count = repaired(rows.column(0).view(pa.large_string()))
        kept = rows.select(range(1, rows.num_columns))  # keeps the number of rows where no column is kept
        for position, column in enumerate(self.kept_schema):
            if is_string(column.type):
                kept = kept.set_column(position, column, repaired(kept.column(position))[0])
        return Chunk(index=index, first_row=first_row, texts=texts, kept=kept, repaired=count)


def open_corpus(
    inputs: Sequence[str | Path] | str | Path,
    *,
    column: str | None = None,
    keep: Sequence[str] | None = (),
    limit: int | None = None,
    output: Path | None = None,
    vector_column: str | None = None,
    lines: bool = False,
) -> Corpus:
    """Open and check every file.

    `keep` None keeps all columns, a name alone that one; `limit` is the number of rows used over all files. `output`
    and its `vector_column` are what the rows are embedded into. With `lines`, files of text lines (.txt) are read too.

    Raises InputError for a file or column that cannot be read, before anything is, and UsageError for inputs or kept
    columns that contradict each other or the output.
    """
    sources = [open_source(path, lines=lines) for path in find_files(inputs, output=output)]
    first = sources[0]
    column, reason = _text_column(first) if column is None else (column, "")
    names = first.schema.names if keep is None else [keep] if isinstance(keep, str) else list(keep)
    for name, count in Counter(names).items():
        if vector_column is not None and name in ("row", vector_column):
            raise UsageError(f"kept column {name!r} would clash with the output's own; leave it out, or rename it")
        if count > 1:
            raise UsageError(f"column {name!r} is kept twice; name it once")
    kept_schema = pa.schema([(name, _kept_type(_first_with_values(sources, name), name)) for name in names])
    for source in sources:
        _require_same_columns(source, _first_with_values(sources, column), column, kept_schema)
    files = _files(sources, limit)
    for file, source in zip(files, sources, strict=True):
        if file.rows:  # the first rows tell of encrypted columns and unknown codecs, which a footer does not
            next(source.batches(list({column, *names})), None)
    return Corpus(
        files=files,
        column=column,
        kept_schema=kept_schema,
        rows=sum(file.rows for file in files),
        column_reason=reason,
        _sources=tuple(sources),
    )


def _first_with_values(sources: Sequence[Source], name: str) -> Source:
    """The first file in which the column is not of type null; the first one where it is so in all."""
    typed = (source for source in sources if not types.is_null(_field(source, name).type))
    return next(typed, sources[0])


def _files(sources: Sequence[Source], limit: int | None) -> tuple[InputFile, ...]:
    files = []
    first_row = 0
    for source in sources:
        rows = source.rows if limit is None else min(source.rows, limit - first_row)
        files.append(
            InputFile(uri=str(source.path), size=source.size, mtime_ns=source.mtime_ns, first_row=first_row, rows=rows)
        )
        first_row += rows
    return tuple(files)


def _text_column(source: Source) -> tuple[str, str]:
    """The column that is taken where none is named, and why it is.

    A column by a usual name that holds something else was meant to be the text: no other is taken in its place.
    """
    by_name = {field.name: field.type for field in source.schema}
    # JSON is text where it is asked for, or has a text's name; else it is metadata
    strings = [n for n, type in by_name.items() if is_string(type) and not isinstance(type, pa.BaseExtensionType)]
    usual = [name for name in TEXT_NAMES if name in by_name]
    if len(strings) == 1 and (strings[0] in usual or not usual):
        return strings[0], "the only one of text"
    for name in usual:
        # one of no value was hardly meant beside strings
        if holds_text(by_name[name]) and not (strings and types.is_null(by_name[name])):
            return name, "by its name"
    some = any(is_string(type) or is_binary(type) for type in by_name.values())
    if usual:
        problem = f"column {usual[0]!r} is {_short(by_name[usual[0]])}, not text"
        problem += "; name another with --column" if some else ""
    elif some:
        problem = "cannot tell which column is the text, name it with --column"
    elif inside := _text_inside(source):
        problem = f"no column holds text by itself, name a field of a struct: --column {inside}"
    else:
        problem = "no column holds text"
    raise InputError(f"{source.path}: {problem}. {_columns(source)}")


def _text_inside(source: Source) -> str | None:
    """A field of a struct that holds text, as --column names it."""
    structs = (column for column in source.schema if types.is_struct(column.type))
    return next(
        (f"{column.name}.{below.name}" for column in structs for below in column.type if is_string(below.type)), None
    )


def _kept_type(source: Source, name: str) -> pa.DataType:
    try:
        return plain_type(_field(source, name).type)
    except (TypeError, UnicodeDecodeError) as error:  # the latter: a nested field's name
        raise InputError(f"{source.path}: column {name!r} cannot be kept: {error}") from error


def _require_same_columns(source: Source, first: Source, column: str, kept_schema: pa.Schema) -> None:
    text, first_text = _field(source, column).type, _field(first, column).type
    if not holds_text(text):
        raise InputError(f"{source.path}: column {column!r} is {text}, not text. {_columns(source)}")
    if (is_string(text) and is_binary(first_text)) or (is_binary(text) and is_string(first_text)):
        raise InputError(f"{source.path}: column {column!r} is {text}, but {first_text} in {first.path}")
    for kept in kept_schema:
        type = _kept_type(source, kept.name)
        if type != kept.type and not types.is_null(type):
            raise InputError(f"{source.path}: kept column {kept.name!r} is {type}, but {kept.type} in {first.path}")


def _field(source: Source, name: str) -> pa.Field:
    path = path_to(source.schema, name)
    if path is None:
        raise InputError(f"{source.path}: there is no column {name!r}. {_columns(source)}")
    return field_at(source.schema, path)


def _short(type: pa.DataType) -> str:
    text = str(type)
    return text if len(text) <= 30 else f"{text[:29]}…"


def _columns(source: Source) -> str:
    """What the columns are, in a sentence; neither a wide table nor a deep type is spelled out."""
    names = [f"{field.name} ({_short(field.type)})" for field in source.schema]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"Its columns: {', '.join(names[:20])}{more}" if names else "It has no columns"
