"""Opens a finished output for reading: its metadata, and its rows in bounded memory.

Shapes: n rows of a batch, D values of a vector.
"""

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc as ipc

from fastvec.errors import OutputError, UsageError, one_line
from fastvec.output import arrow_file, parquet_file
from fastvec.output.vector_column import column_type, ranges_from_json
from fastvec.system.blocks import Block

Array = npt.NDArray[Any]

# between `row` and the vectors, if a row is a passage of a text: its number in the text, and where it is in it
PASSAGE_COLUMNS = (("chunk", pa.int32()), ("char_start", pa.int64()), ("char_end", pa.int64()))
CHUNK_TEXT = ("chunk_text", pa.string())  # after these, if asked for
SHARD = "shard"  # in the metadata and the fingerprint: the begin and end row, if the output has only these
_ROWS_AT_ONCE = 1024  # 32 MB of float64 vectors of 4096 dimensions


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """An opened output, an Arrow or a Parquet file.

    `own` is the schema's metadata, `promises` the footer's; other fields are parsed from these.
    """

    path: Path
    is_parquet: bool
    schema: pa.Schema
    own: dict[str, str]  # keys without the prefix "fastvec."
    promises: dict[str, str]
    rows: int
    counts: dict[str, int]
    blocks: list[Block]  # the record batches or row groups; empty for a Parquet file of an earlier version
    inputs: list[dict[str, Any]]
    shard: range | None  # the rows of the inputs, if not all
    dims: int
    vector_dtype: str
    vector_columns: tuple[str, ...]
    vector_type: pa.DataType  # as given by dims and vector_dtype
    normalize: bool
    ranges: Array | None  # [D], only for int8 vectors: value = int8 * range / 127

    @property
    def input_rows(self) -> int:
        """The number of rows of the inputs; other than `rows` if those are passages."""
        return self.counts.get("input_rows", self.rows)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The job that wrote the output. Raises OutputError if it is damaged."""
        try:
            fingerprint: dict[str, Any] = json.loads(self.own["fingerprint"])
        except (ValueError, KeyError, RecursionError) as error:
            raise OutputError(f"{self.path} has damaged metadata: {error!r}") from error
        return fingerprint

    @property
    def rows_of_inputs(self) -> range:
        """The rows of the inputs that the output has: those of a shard, or all."""
        return range(self.input_rows) if self.shard is None else self.shard

    @property
    def errors_crc32(self) -> str | None:
        """The CRC32 of the file of row errors; None if there is none, or an earlier version wrote the output."""
        return self.promises.get("fastvec.errors_crc32")

    @property
    def has_passages(self) -> bool:
        """Whether a row is a passage of a row of the inputs."""
        return self.own.get("long") == "chunks"

    @property
    def kept_columns(self) -> tuple[str, ...]:
        """The columns that were copied from the inputs."""
        own = {"row", *self.vector_columns, *json.loads(self.own.get("hash_columns", "[]"))}
        if self.has_passages:
            own |= {name for name, _ in (*PASSAGE_COLUMNS, CHUNK_TEXT)}
        return tuple(name for name in self.schema.names if name not in own)

    @property
    def vectors_missing(self) -> int:
        """The number of texts without a vector, by the counts: null ones and errors; a row has one for each column."""
        return self.counts.get("nulls", 0) + self.counts.get("errors", 0)

    @property
    def batch_count(self) -> int:
        return parquet_file.count_groups(self.path) if self.is_parquet else len(self.blocks)

    def stored_batches(self, *, stride: int = 1) -> Iterator[pa.RecordBatch]:
        """Yield every `stride`th record batch, or row group in batches of 1,024 rows, with one in memory at a time.

        Raises OutputError if one is so damaged that Arrow cannot read it.
        """
        if self.is_parquet:
            yield from parquet_file.read_batches(self.path, stride)
            return
        with pa.OSFile(os.fsencode(self.path)) as source:
            reader = ipc.open_file(source)
            for index in range(0, reader.num_record_batches, stride):
                try:
                    batch = reader.get_batch(index)
                    batch.validate()
                except (pa.ArrowException, OSError) as error:  # Arrow also raises OSError for malformed bytes
                    raise OutputError(f"{self.path}: batch {index} cannot be read: {one_line(error)}") from error
                yield batch

    def batches(self, *, stride: int = 1) -> Iterator[pa.RecordBatch]:
        """Yield the same rows in slices of at most 1,024."""
        for batch in self.stored_batches(stride=stride):
            for begin in range(0, batch.num_rows, _ROWS_AT_ONCE):
                yield batch.slice(begin, _ROWS_AT_ONCE)

    def vectors(self, batch: pa.RecordBatch, name: str) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Return the vectors of `batch` [n, D] in the column `name`, and a mask of the rows that have one [n].

        Null rows keep their place in the values: `flatten` would drop them and shift the later rows.
        """
        column = batch.column(name)
        width = column.type.list_size
        values = column.values.slice(column.offset * width, len(column) * width)  # `values` ignores the slice
        valid = np.ones(len(column), dtype=np.bool_)
        if column.null_count:
            valid = column.is_valid().to_numpy(zero_copy_only=False)
        rows: Array = values.to_numpy(zero_copy_only=False).reshape(len(column), width)
        if values.null_count and pa.types.is_integer(values.type):  # floats now, with NaN for a null
            rows[~valid] = 0  # read from Parquet, a null row has null values
            rows = rows.astype(values.type.to_pandas_dtype()) if np.isfinite(rows).all() else rows
        return rows, valid

    def norms(self, vectors: Array) -> Array:
        """Return the L2 norms of `vectors` [n, D] as float64 [n]; int8 vectors are dequantized first."""
        wide = vectors.astype(np.float64)
        if self.ranges is not None:
            wide *= self.ranges / 127
        lengths: Array = np.sqrt(np.einsum("nd,nd->n", wide, wide))
        return lengths


def read_output(path: Path) -> Output:
    """Open the finished output at `path`. Raises a one-line OutputError for any other file.

    The footer's metadata, by which rows are found, are compared with their checksum.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its other end
            raise OutputError(
                f"{path} is a folder: if it is an output in shards, fastvec merge makes one file of it"
                if stat.S_ISDIR(mode)
                else f"{path} is a special file, not an output"
            )
        is_parquet = _starts_with(path, parquet_file.MAGIC)
        schema, promises = read_metadata(path)
        own = {key.removeprefix("fastvec."): text for key, text in _decoded(schema.metadata).items()}
        _ = [(field.name, str(field.type)) for field in schema]  # raises here if a column name is not UTF-8
    except (pa.ArrowException, ValueError) as error:
        raise OutputError(f"{path} {_what_it_is(path)}") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if own.get("format") != arrow_file.FORMAT:
        kind = "a Parquet file" if is_parquet else "an Arrow file"
        raise OutputError(f"{path} is {kind}, but not an output of this version of fastvec")
    try:
        output = Output(
            path=path,
            is_parquet=is_parquet,
            schema=schema,
            own=own,
            promises=promises,
            rows=int(promises["fastvec.rows"]),
            counts={name: int(count) for name, count in json.loads(promises["fastvec.counts"]).items()},
            blocks=_blocks(promises),
            inputs=[
                {"uri": str(file["uri"]), "first_row": int(file["first_row"]), "rows": int(file["rows"])}
                for file in json.loads(own["inputs"])
            ],
            shard=range(*map(int, json.loads(own[SHARD]))) if SHARD in own else None,
            dims=int(own["dims"]),
            vector_dtype=own["vector_dtype"],
            vector_columns=tuple(map(str, json.loads(own.get("vector_columns", json.dumps([own["vector_column"]]))))),
            vector_type=column_type(int(own["dims"]), own["vector_dtype"]),  # type: ignore[arg-type]
            normalize=own["normalize"] == "true",
            ranges=ranges_from_json(own["ranges"]) if "ranges" in own else None,
        )
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, OverflowError, UsageError) as error:
        raise OutputError(f"{path} has damaged metadata: {error!r}") from error
    try:
        if _is_footer_intact(output):
            return output
    except OSError as error:
        raise _unreadable(path, error) from error
    raise OutputError(f"{path} has a damaged footer: its metadata, which stand after all rows, fail their checksum")


def _unreadable(path: Path, error: OSError) -> OutputError:
    if isinstance(error, FileNotFoundError) and path.with_name(f"{path.name}.journal").exists():
        return OutputError(f"{path} is unfinished: run the same command again to resume it")
    reason = os.strerror(error.errno) if error.errno else one_line(error)  # pyarrow's message would repeat the path
    return OutputError(f"{path} cannot be read: {reason}")


def _blocks(promises: dict[str, str]) -> list[Block]:
    listed = json.loads(promises.get("fastvec.batches", "[]"))
    return [Block(**{name: int(block[name]) for name in ("rows", "end_offset", "crc32")}) for block in listed]


def _is_footer_intact(output: Output) -> bool:
    promises = output.promises
    if output.is_parquet:
        has_blocks = "fastvec.batches" in promises  # an earlier version wrote none
        return parquet_file.is_footer_intact(output.path, output.blocks if has_blocks else None)
    return promises == arrow_file.footer_metadata(output.schema, output.counts, output.blocks, output.errors_crc32)


def read_metadata(path: Path) -> tuple[pa.Schema, dict[str, str]]:
    """Read the schema of a finished output, with its metadata, and the footer's metadata.

    Raises OSError, ArrowException or ValueError for other files.
    """
    if _starts_with(path, parquet_file.MAGIC):
        try:
            with parquet_file.opened(path) as file:
                return parquet_file.read_metadata(file)
        except OSError as error:
            if error.errno is None:  # what Arrow raises for a malformed footer
                raise ValueError(one_line(error)) from error
            raise
    with pa.memory_map(os.fsencode(path)) as source:  # the path may not be UTF-8
        reader = ipc.open_file(source)
        return reader.schema, _decoded(reader.metadata)


def _decoded(metadata: dict[bytes, bytes] | None) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in (metadata or {}).items()}


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _what_it_is(path: Path) -> str:
    if _starts_with(path, parquet_file.MAGIC):
        return "starts as a Parquet file but has no valid footer: it is truncated or damaged"
    if not _starts_with(path, arrow_file.MAGIC):
        return "is neither an Arrow IPC file nor a Parquet file"
    if path.suffix == ".part":
        return "is unfinished: run the same command again to resume it"
    return "starts as an Arrow IPC file but has no valid footer: it is truncated or damaged"
