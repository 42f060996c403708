"""Reads the corpus files as chunks of texts, in order, with their position.

A chunk is a range of consecutive rows and may span files. Its end depends only on the rows from its first row on, not
on files or row groups, so a run that resumes at a chunk's first row cuts exactly the same chunks.
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
MEMORY_BYTES = 16 << 20  # of a chunk; several chunks are in memory at a time
MAX_CHUNK_BYTES = 1 << 29  # an invalid byte becomes U+FFFD, 3 bytes: stays below 2 GiB, the limit of int32 offsets


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkLimits:
    """Limits of a chunk. A chunk ends before the row that would exceed either limit.

    `bytes` counts the text (UTF-8) and the kept columns, decoded; of a row at most `row_bytes`, if given, while the
    chunk stays below MEMORY_BYTES. A row that exceeds this alone gets a chunk of its own.
    Raises ValueError if `rows` is below 1 or `bytes` is not in 1 to MAX_CHUNK_BYTES.
    """

    rows: int
    bytes: int
    row_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.rows < 1 or not 1 <= self.bytes <= MAX_CHUNK_BYTES:
            raise ValueError(f"a chunk needs rows >= 1 and bytes from 1 to {MAX_CHUNK_BYTES}, got {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Consecutive rows [n] of a corpus.

    `texts` is a large_string array of valid UTF-8 and may contain nulls; `kept` has the kept columns. `first_row` is
    the row number over all files; `repaired` is the number of texts that were not valid UTF-8.
    """

    index: int
    first_row: int
    texts: pa.Array
    kept: pa.RecordBatch
    repaired: int


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFile:
    """One file of a corpus. Its first `rows` rows are used; the first of them is row `first_row` of the corpus."""

    uri: str
    size: int
    mtime_ns: int
    first_row: int
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """The opened and checked input files of a job, with their text column, kept columns and number of rows."""

    files: tuple[InputFile, ...]
    column: str
    kept_schema: pa.Schema
    rows: int
    column_reason: str  # why this column was chosen; empty if it was given
    _sources: tuple[Source, ...] = field(repr=False)

    def log_text_column(self) -> None:
        """Log which text column was chosen, and why, if none was given."""
        if self.column_reason:
            logger.info("text column: %s (%s)", self.column, self.column_reason)

    def chunks(
        self, limits: ChunkLimits, *, first_row: int = 0, first_index: int = 0, end_row: int | None = None
    ) -> Iterator[Chunk]:
        """Yield the rows from `first_row` up to but excluding `end_row` in chunks cut by `limits`.

        The chunks are numbered from `first_index`. Files that end before `first_row` are not opened.
        Raises InputError if a file cannot be read or changed since the corpus was opened.
        """
        index = first_index
        pieces: list[pa.RecordBatch] = []
        rows = size = 0
        for batch in self._batches(first_row, self.rows if end_row is None else end_row):
            sizes = np.sum([row_bytes(column) for column in batch.columns], axis=0)
            if limits.row_bytes is not None:
                sizes = np.maximum(np.minimum(sizes, limits.row_bytes), sizes * limits.bytes // MEMORY_BYTES)
            ends = np.concatenate([[0], np.cumsum(sizes)])
            start = 0
            while start < batch.num_rows:
                end = int(np.searchsorted(ends, ends[start] + limits.bytes - size, side="right")) - 1
                end = min(end, start + limits.rows - rows)
                end = max(end, start if rows else start + 1)  # a chunk always takes its first row, however large
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
        """Return the file and the row group (record batch of an Arrow file) that contain a row of the corpus."""
        for file, source in zip(self.files, self._sources, strict=True):
            if file.first_row <= row < file.first_row + file.rows:
                return file.uri, source.group_of(row - file.first_row)[0]
        raise IndexError(f"row {row} is not among the corpus's {self.rows} rows")

    @property
    def groups(self) -> list[tuple[int, int]]:
        """The begin and end row in the corpus of every non-empty row group (record batch of an Arrow file)."""
        bounds: list[tuple[int, int]] = []
        for file, source in zip(self.files, self._sources, strict=True):
            ends = np.minimum(np.cumsum(source.group_rows), file.rows) + file.first_row
            begins = np.concatenate([[file.first_row], ends])[:-1]
            bounds += [(int(begin), int(end)) for begin, end in zip(begins, ends, strict=True) if begin < end]
        return bounds

    def _batches(self, first_row: int, end_row: int) -> Iterator[pa.RecordBatch]:
        """Yield the text column and the kept columns, encoded as in the files."""
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
        kept = rows.select(range(1, rows.num_columns))  # preserves the number of rows if no column is kept
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
    """Open and check every input file, before any chunk is read.

    Args:
        inputs: One or several files, folders or glob patterns.
        column: The text column; None chooses it by type and name.
        keep: Columns to copy to the output: names, or a single name; None keeps all.
        limit: Maximum number of rows, over all files.
        output: The file that will be written; it must not be an input.
        vector_column: Its vector column. Kept columns may not have this name or `row`; None skips this check.
        lines: Whether to read .txt files too, with one text per line.

    Raises InputError for a file or column that cannot be read, and UsageError for inputs or kept columns that conflict
    with each other or with the output.
    """
    sources = [open_source(path, lines=lines) for path in find_files(inputs, output=output)]
    first = sources[0]
    column, reason = _text_column(first) if column is None else (column, "")
    names = first.schema.names if keep is None else [keep] if isinstance(keep, str) else list(keep)
    for name, count in Counter(names).items():
        if vector_column is not None and name in ("row", vector_column):
            raise UsageError(f"kept column {name!r} has the name of an output column; do not keep it, or rename it")
        if count > 1:
            raise UsageError(f"column {name!r} is kept twice; give it once")
    kept_schema = pa.schema([(name, _kept_type(_first_with_values(sources, name), name)) for name in names])
    for source in sources:
        _require_same_columns(source, _first_with_values(sources, column), column, kept_schema)
    files = _files(sources, limit)
    for file, source in zip(files, sources, strict=True):
        if file.rows:  # only reading rows reveals encrypted columns and unknown codecs; the footer does not
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
    """Return the first file in which the column is not of type null, or the first file if it is null in all."""
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
    """Choose the text column if none is given; returns its name and the reason.

    If columns have usual names (TEXT_NAMES) but none of these contains text, one was probably meant to be the text: no
    other column is chosen instead. Raises InputError if no column can be chosen.
    """
    by_name = {field.name: field.type for field in source.schema}
    # a JSON column is chosen only by a usual name (or with --column); otherwise it is metadata
    strings = [n for n, type in by_name.items() if is_string(type) and not isinstance(type, pa.BaseExtensionType)]
    usual = [name for name in TEXT_NAMES if name in by_name]
    if len(strings) == 1 and (strings[0] in usual or not usual):
        return strings[0], "the only string column"
    for name in usual:
        # a column of type null is not chosen if there are string columns
        if holds_text(by_name[name]) and not (strings and types.is_null(by_name[name])):
            return name, "chosen by its name"
    some = any(is_string(type) or is_binary(type) for type in by_name.values())
    if usual:
        problem = f"column {usual[0]!r} is {_short(by_name[usual[0]])}, not text"
        problem += "; give another column with --column" if some else ""
    elif some:
        problem = "cannot tell which column is the text; give it with --column"
    elif inside := _text_inside(source):
        problem = f"no top-level column contains text; give a struct field, e.g. --column {inside}"
    else:
        problem = "no column contains text"
    raise InputError(f"{source.path}: {problem}. {_columns(source)}")


def _text_inside(source: Source) -> str | None:
    """Return a string field of a struct, as --column would name it."""
    structs = (column for column in source.schema if types.is_struct(column.type))
    return next(
        (f"{column.name}.{below.name}" for column in structs for below in column.type if is_string(below.type)), None
    )


def _kept_type(source: Source, name: str) -> pa.DataType:
    try:
        return plain_type(_field(source, name).type)
    except (TypeError, UnicodeDecodeError) as error:  # UnicodeDecodeError: a nested field's name
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
    """List the columns in a sentence: at most 20 of them, with types shortened to 30 characters."""
    names = [f"{field.name} ({_short(field.type)})" for field in source.schema]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"Its columns: {', '.join(names[:20])}{more}" if names else "It has no columns"
