"""Reads the corpus files as chunks of texts, in order, with their position.

A chunk is a range of consecutive rows and may span files. Its end depends only on the rows from its first row on, and
on where shards end, so a run that resumes at a chunk's first row cuts exactly the same chunks.
"""

import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.corpus.columns import decoded, is_string, repaired, row_bytes, with_bad_rows
from fastvec.corpus.formats.files import for_each
from fastvec.corpus.formats.source import Source
from fastvec.corpus.shard_ranges import shard_ranges
from fastvec.corpus.template import Template
from fastvec.errors import InputError

logger = logging.getLogger(__name__)

MEMORY_BYTES = 16 << 20  # of a chunk; several chunks are in memory at a time
MAX_CHUNK_BYTES = 1 << 29  # an invalid byte becomes U+FFFD, 3 bytes: stays below 2 GiB, the limit of int32 offsets


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkLimits:
    """Limits of a chunk. A chunk ends before the row that would exceed either limit.

    `bytes` counts the text (UTF-8) and the kept columns, decoded; of a row at most `row_bytes`, if given, while the
    chunk stays below MEMORY_BYTES. A row that exceeds this alone gets a chunk of its own. With `shard_rows`, a chunk
    also ends where a shard of about so many rows ends.
    Raises ValueError if `rows` is below 1 or `bytes` is not in 1 to MAX_CHUNK_BYTES.
    """

    rows: int
    bytes: int
    row_bytes: int | None = None
    shard_rows: int | None = None

    def __post_init__(self) -> None:
        if self.rows < 1 or not 1 <= self.bytes <= MAX_CHUNK_BYTES:
            raise ValueError(f"a chunk needs rows >= 1 and bytes from 1 to {MAX_CHUNK_BYTES}, got {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Consecutive rows [n] of a corpus.

    `texts` is a large_string array of valid UTF-8 and may contain nulls. It has the texts of each text column after
    those of the one before: [n] for a single column, [k · n] for k of them. `kept` has the kept columns. `first_row` is
    the row number over all files; `repaired` is the number of texts that were not valid UTF-8.
    """

    index: int
    first_row: int
    texts: pa.Array
    kept: pa.RecordBatch
    repaired: int
    instructions: pa.Array | None = None  # [n], if the job has a column of instructions
    bad: npt.NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, dtype=np.intp))  # rows that cannot be read


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFile:
    """One file of a corpus. Its first `rows` rows are used; the first of them is row `first_row` of the corpus.

    `version` is the modification time in ns; in a store the etag, or what it has instead; of an input that is no file
    the hash of its content.
    """

    uri: str
    size: int
    version: int | str
    first_row: int
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """The opened and checked input files of a job, with their text columns, kept columns and number of rows."""

    files: tuple[InputFile, ...]
    templates: tuple[Template, ...]  # one for each vector of a row
    instruction_column: str | None
    kept_schema: pa.Schema
    rows: int
    column_reason: str  # why this column was chosen; empty if it was given
    _sources: tuple[Source, ...] = field(repr=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """The text columns, or the template, by which the vectors of a row are told apart."""
        return tuple(template.name for template in self.templates)

    @property
    def paths(self) -> list[Path]:
        """The local files that are read."""
        return [source.path for source in self._sources if isinstance(source.path, Path)]

    def log_text_column(self) -> None:
        """Log which text column was chosen, and why, if none was given."""
        if self.column_reason:
            logger.info("text column: %s (%s)", self.columns[0], self.column_reason)

    def require_readable(self) -> None:
        """Read the first rows of each file: only that reveals encrypted columns and unknown codecs.

        Raises InputError if a file cannot be read.
        """
        used = [source for file, source in zip(self.files, self._sources, strict=True) if file.rows]
        local = all(isinstance(source.path, Path) for source in used)
        for_each(lambda source: next(source.batches(self._columns), None), used, local=local)

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
        shard_ends = [self.rows] if limits.shard_rows is None else [one.stop for one in self.shards(limits.shard_rows)]
        for batch in self._batches(first_row, self.rows if end_row is None else end_row):
            sizes = np.sum([row_bytes(column) for column in batch.columns[:-1]], axis=0)
            self._require_small_rows(sizes, first_row + rows)
            if limits.row_bytes is not None:
                sizes = np.maximum(np.minimum(sizes, limits.row_bytes), sizes * limits.bytes // MEMORY_BYTES)
            ends = np.concatenate([[0], np.cumsum(sizes)])
            start = 0
            while start < batch.num_rows:
                end = int(np.searchsorted(ends, ends[start] + limits.bytes - size, side="right")) - 1
                end = min(end, start + limits.rows - rows)
                end = min(end, start + shard_ends[bisect_right(shard_ends, first_row)] - first_row - rows)
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

    def locate(self, rows: Sequence[int]) -> Iterator[tuple[str, dict[str, int]]]:
        """Yield the file of each of `rows`, which ascend, and the place in it: a row group, a line or a record."""
        last = len(self.files) - 1
        ends = np.searchsorted(rows, [file.first_row + file.rows for file in self.files])
        begin = 0
        for number, (file, source) in enumerate(zip(self.files, self._sources, strict=True)):
            end = len(rows) if number == last else int(ends[number])
            own = [row - file.first_row for row in rows[begin:end]]
            yield from ((file.uri, place) for place in source.content.places(own))
            begin = end

    def shards(self, shard_rows: int) -> list[range]:
        """Return the ranges of about `shard_rows` rows that separate processes embed."""
        return shard_ranges(self.groups, shard_rows)

    @property
    def groups(self) -> list[tuple[int, int]]:
        """The begin and end row in the corpus of every non-empty row group (record batch of an Arrow file)."""
        bounds: list[tuple[int, int]] = []
        for file, source in zip(self.files, self._sources, strict=True):
            ends = np.minimum(np.cumsum(source.group_rows), file.rows) + file.first_row
            begins = np.concatenate([[file.first_row], ends])[:-1]
            bounds += [(int(begin), int(end)) for begin, end in zip(begins, ends, strict=True) if begin < end]
        return bounds

    @property
    def seeks(self) -> bool:
        """Whether reading can begin at any group without the rows of the file before it."""
        return all(source.content.seeks for source in self._sources)

    @property
    def _columns(self) -> list[str]:
        """The columns to read, each once."""
        texts = [column for template in self.templates for column in template.columns]
        instructions = [] if self.instruction_column is None else [self.instruction_column]
        return list(dict.fromkeys([*texts, *instructions, *self.kept_schema.names]))

    def _batches(self, first_row: int, end_row: int) -> Iterator[pa.RecordBatch]:
        """Yield the columns, encoded as in the files, and a last one that is true for bad rows."""
        columns = self._columns
        for file, source in zip(self.files, self._sources, strict=True):
            skip = max(first_row - file.first_row, 0)
            missing = min(file.rows, end_row - file.first_row) - skip
            if missing <= 0:
                continue
            for batch in source.batches(columns, first_row=skip):
                if not source.content.marks_bad_rows:
                    batch = with_bad_rows(batch, np.zeros(batch.num_rows, dtype=np.bool_))
                yield batch.slice(0, missing)
                missing -= batch.num_rows
                if missing <= 0:
                    break
            source.require_unchanged()

    def _require_small_rows(self, sizes: npt.NDArray[np.int64], first_row: int) -> None:
        if sizes.max(initial=0) > MAX_CHUNK_BYTES:
            row = int(np.argmax(sizes))
            ((uri, place),) = self.locate([first_row + row])
            unit, number = next(iter(place.items()))
            raise InputError(
                f"{uri}: row {first_row + row} of the corpus, in {unit.replace('_', ' ')} {number}, has {sizes[row]:,} "
                f"bytes of text and kept columns, more than {MAX_CHUNK_BYTES:,}; split it, or keep fewer columns"
            )

    def _decoded(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the texts, the instructions, the kept columns and the mark of bad rows, in plain types."""
        column = dict(zip(self._columns, batch.columns, strict=False))  # the last one has no name
        texts = [template.render([column[name] for name in template.columns]) for template in self.templates]
        if self.instruction_column is not None:
            texts.append(decoded(column[self.instruction_column], pa.large_binary()))
        kept = [decoded(column[field.name], field.type) for field in self.kept_schema]
        arrays = [*texts, *kept, batch.columns[-1]]
        return pa.RecordBatch.from_arrays(arrays, [str(number) for number in range(len(arrays))])

    def _chunk(self, index: int, first_row: int, pieces: list[pa.RecordBatch]) -> Chunk:
        rows = pa.concat_batches(pieces)
        count = len(self.templates)
        *columns, bad = rows.columns
        joined = columns[0] if count == 1 else pa.concat_arrays(columns[:count])  # which copies even a single one
        texts, wrong = repaired(joined.view(pa.large_string()))
        instructions = None
        if self.instruction_column is not None:
            instructions = repaired(columns[count].view(pa.large_string()))[0]
            count += 1
        kept = rows.select(range(count, rows.num_columns - 1))  # preserves the number of rows if no column is kept
        kept = kept.rename_columns(self.kept_schema.names)
        for position, column in enumerate(self.kept_schema):
            if is_string(column.type):
                kept = kept.set_column(position, column, repaired(kept.column(position))[0])
        return Chunk(
            index=index,
            first_row=first_row,
            texts=texts,
            kept=kept,
            repaired=wrong,
            instructions=instructions,
            bad=np.flatnonzero(bad),
        )
