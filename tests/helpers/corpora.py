"""Small corpus files for tests."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ipc

from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import Chunk, ChunkLimits, Corpus

ALL = ChunkLimits(rows=1_000_000, bytes=1 << 29)


def write_parquet(path: Path, table: pa.Table, *, group_rows: int | None = None, **options: Any) -> Path:
    pq.write_table(table, path, row_group_size=group_rows, **options)
    return path


def write_arrow(path: Path, table: pa.Table, *, group_rows: int | None = None, compression: str | None = None) -> Path:
    with ipc.new_file(path, table.schema, options=ipc.IpcWriteOptions(compression=compression)) as file:
        for batch in table.combine_chunks().to_batches(group_rows):
            file.write(batch)
    return path


def write_stream(path: Path, table: pa.Table, *, group_rows: int | None = None) -> Path:
    with ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table, group_rows)
    return path


def texts(values: list[str | None], name: str = "text") -> pa.Table:
    return pa.table({name: pa.array(values, pa.string())})


def read(*inputs: str | Path, limits: ChunkLimits = ALL, **options: Any) -> list[Chunk]:
    return list(open_corpus(inputs, **options).chunks(limits))


def read_texts(*inputs: str | Path, **options: Any) -> list[str | None]:
    return [text for chunk in read(*inputs, **options) for text in chunk.texts.to_pylist()]


def read_kept(corpus: Corpus) -> pa.Table:
    return pa.Table.from_batches([chunk.kept for chunk in corpus.chunks(ALL)], corpus.kept_schema)
