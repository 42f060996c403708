"""Reads Parquet files in record batches of bounded size.

A file's declared sizes are not trusted: 300 bytes of Parquet can decode to gigabytes, through a dictionary or
compression. So Parquet is read through a buffered stream, and the decoded sizes of earlier rows determine how many rows
the next read takes. pyarrow's `read_dictionary` was rejected: it helps only with dictionaries, it copies the
dictionary with each read, which is 30 times slower if all texts of a row group fit into one dictionary, and it cannot
read delta encodings. A page is always decoded whole; `parquet_pages` limits its size, in local files: in a store, each
page would be a request.
"""

from array import array
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from fastvec.corpus.columns import paths_to, row_bytes, select
from fastvec.corpus.formats.errors import as_input_errors
from fastvec.corpus.formats.files import File, as_native
from fastvec.corpus.formats.parquet_pages import PageHeaders, most_list_items
from fastvec.errors import InputError

FIRST_READ_ROWS = 16  # before any row's size is known
MAX_READ_ROWS = 256  # limits memory if huge rows follow small ones; larger reads are no faster
READ_BYTES = 8 << 20  # target decoded size of one read
# compressed bytes buffered per column chunk, which are one request to a store; otherwise pyarrow reads the whole chunk
BUFFER_BYTES, REQUEST_BYTES = 1 << 20, 4 << 20


@dataclass(frozen=True, slots=True)
class ParquetRows:
    """The rows of a Parquet file."""

    marks_bad_rows: ClassVar[bool] = False
    seeks: ClassVar[bool] = True
    path: File
    schema: pa.Schema
    group_rows: tuple[int, ...]
    _group_places: "array[int]" = field(default_factory=lambda: array("q"), repr=False, compare=False)

    @classmethod
    def open(cls, path: File) -> "ParquetRows":
        """Read the file's footer. Raises InputError if the rows of its groups are not as many as those of the file."""
        with _opened(path) as file:
            metadata = file.metadata
            rows = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
            if sum(rows) != metadata.num_rows and min(rows, default=0) >= 0:
                raise InputError(
                    f"{path}: the footer has {metadata.num_rows:,} rows, but {sum(rows):,} in row groups: corrupt file"
                )
            return cls(path, file.schema_arrow, rows)

    def read(self, columns: Sequence[str], first_group: int, skip: int) -> Iterator[pa.RecordBatch]:
        """Yield the named columns, from row `skip` of row group `first_group` on."""
        paths = paths_to(self.schema, columns)
        rows = FIRST_READ_ROWS
        with _opened(self.path) as file, self._headers(file, paths.keys()) as headers:
            for group in range(first_group, len(self.group_rows)):
                with as_input_errors(self.path, group):
                    missing = self.group_rows[group]
                    ahead = None if headers is None else headers.group(group)
                    batches = file.iter_batches(rows, row_groups=[group], columns=list(paths))
                    while True:
                        if ahead is not None:
                            ahead.check(self.group_rows[group] - missing + rows)
                        batch = next(batches, None)
                        if batch is None:
                            break
                        batch = select(batch, paths)
                        if skip < batch.num_rows:
                            yield batch.slice(skip)
                        skip = max(skip - batch.num_rows, 0)
                        missing -= batch.num_rows
                        size = sum(int(row_bytes(column).sum()) for column in batch.columns)
                        rows = max(1, min(2 * rows, READ_BYTES * batch.num_rows // max(size, 1), MAX_READ_ROWS))
                        file.reader.set_batch_size(rows)  # takes effect with the next batch
                    if missing:
                        raise InputError(f"{self.path}: row group {group} has {missing} rows too few: corrupt file")

    def places(self, rows: Sequence[int]) -> Iterator[dict[str, int]]:
        """Yield the row group of each of `rows`, which ascend."""
        return ({"row_group": group} for group in groups_of(self.group_rows, rows))

    @contextmanager
    def _headers(self, file: pq.ParquetFile, columns: Collection[str]) -> Iterator[PageHeaders | None]:
        """Yield the page headers of `columns` and of fields of them; None for a file in a store."""
        if not isinstance(self.path, Path):
            yield None
            return
        leaves = {}
        for number in range(len(file.schema)):
            leaf = file.schema.column(number)
            parts = leaf.path.split(".")
            if any(".".join(parts[:count]) in columns for count in range(1, len(parts) + 1)):
                leaves[number] = leaf.max_repetition_level > 0
        with self.path.open("rb", buffering=0) as opened:
            yield PageHeaders(self.path, opened, leaves, self._group_places)


@contextmanager
def _opened(path: File) -> Iterator[pq.ParquetFile]:
    options: dict[str, Any] = {"pre_buffer": False, "page_checksum_verification": True}
    if isinstance(path, Path):
        # a list is allocated by the length that it claims: of elements that take a byte or more each
        options["thrift_container_size_limit"] = most_list_items(path)
        with pq.ParquetFile(path, buffer_size=BUFFER_BYTES, **options) as file:
            yield file
    else:
        with (
            as_native(path, stream=False) as native,
            pq.ParquetFile(native, buffer_size=REQUEST_BYTES, **options) as file,
        ):
            yield file


def groups_of(group_rows: Sequence[int], rows: Sequence[int]) -> Iterator[int]:
    """Yield the group of each of `rows`, which ascend, for groups of so many rows."""
    group, end = -1, 0
    for row in rows:
        while row >= end:
            group += 1
            end += group_rows[group]
        yield group
