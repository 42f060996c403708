"""Reads Arrow IPC files and streams. Local ones are memory-mapped; a compressed record batch is decoded whole.

`arrow_buffers` limits what the columns of one are decompressed to, in local files.

A stream, as `datasets.save_to_disk` writes it, has no footer: its record batches are counted by going through it once,
which reads only their headers and one narrow column.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
from pyarrow import ipc

from fastvec.corpus.columns import paths_to, select
from fastvec.corpus.formats.arrow_buffers import check_buffers
from fastvec.corpus.formats.errors import as_input_errors
from fastvec.corpus.formats.files import File, as_native, open_random
from fastvec.corpus.formats.parquet import groups_of
from fastvec.errors import InputError

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


@dataclass(frozen=True, slots=True)
class ArrowRows:
    """The rows of an Arrow IPC file, or of a stream if `stream`; record batches are its groups."""

    marks_bad_rows: ClassVar[bool] = False
    path: File
    stream: bool
    schema: pa.Schema
    group_rows: tuple[int, ...]

    @property
    def seeks(self) -> bool:
        """Whether the file has a list of its record batches; a stream is read from its start."""
        return not self.stream

    @classmethod
    def open(cls, path: File, *, stream: bool) -> "ArrowRows":
        """Read the schema and the rows of each record batch.

        pyarrow reads a batch to tell its row count. Only one column is included, of a primitive type if there is one,
        so that no other column of a compressed batch is decoded.
        Raises InputError for a stream without an end marker: nothing else tells a truncated one from a whole one.
        """
        if stream:
            with open_random(path) as file:
                file.seek(-len(END_OF_STREAM), os.SEEK_END)
                if file.read() != END_OF_STREAM:
                    raise InputError(
                        f"{path}: the Arrow stream has no end marker: it is truncated, or still being written"
                    )
        if isinstance(path, Path):
            check_buffers(path, stream=stream)
        with _batches(path, stream, None) as (schema, _):
            pass
        narrow = [index for index, column in enumerate(schema) if pa.types.is_primitive(column.type)]
        with _batches(path, stream, (narrow or list(range(len(schema))))[:1]) as (_, batches):
            return cls(path, stream, schema, tuple(batch.num_rows for batch in batches))

    def read(self, columns: Sequence[str], first_group: int, skip: int) -> Iterator[pa.RecordBatch]:
        """Yield the named columns, from row `skip` of record batch `first_group` on.

        A batch can change with the file until the caller has copied it.
        """
        paths = paths_to(self.schema, columns)
        tops = {self.schema.get_field_index(path[0]) for path in paths.values()}
        with _batches(self.path, self.stream, sorted(tops), first_group) as (_, batches):
            for group in range(first_group, len(self.group_rows)):
                with as_input_errors(self.path, group):
                    yield select(next(batches), paths).slice(skip)
                skip = 0

    def places(self, rows: Sequence[int]) -> Iterator[dict[str, int]]:
        """Yield the record batch of each of `rows`, which ascend."""
        return ({"row_group": group} for group in groups_of(self.group_rows, rows))


@contextmanager
def _batches(
    path: File, stream: bool, fields: list[int] | None, first: int = 0
) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """Open the file, with these fields or all, and yield its schema and its batches from `first` on."""
    options = ipc.IpcReadOptions() if fields is None else ipc.IpcReadOptions(included_fields=fields)
    opened = ipc.open_stream if stream else ipc.open_file
    with as_native(path, stream=stream) as native, opened(native, options=options) as reader:
        if stream:
            yield reader.schema, islice(reader, first, None)
        else:
            yield reader.schema, map(reader.get_batch, range(first, reader.num_record_batches))
