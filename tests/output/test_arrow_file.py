from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import ipc

from fastvec.errors import OutputError
from fastvec.output.arrow_file import encode, footer, footer_metadata, head, require_plain
from fastvec.system.blocks import Block, first_damaged

ROWS = 60
MISSING = np.arange(ROWS) % 3 == 0


def batch_of(column: pa.Array) -> pa.RecordBatch:
    return pa.record_batch({"column": column})


VALUES: dict[str, Callable[[int], object]] = {
    "string": lambda i: "x" * (i % 7),
    "int64": lambda i: i,
    "bool": lambda i: i % 2 == 0,
    "list": lambda i: [None, i] * (i % 3),
    "struct": lambda i: {"a": i, "b": [str(i)] * (i % 3)},
    "timestamp": lambda i: np.datetime64(i, "us").item(),
}


def test_parts_make_the_file_that_pyarrow_makes(tmp_path: Path) -> None:
    batches = [batch_of(pa.array(range(i), pa.int64())) for i in (3, 1000, 0)]
    schema, counts = batches[0].schema, {"tokens": 7}
    parts = [head(schema), *(encode(batch).to_pybytes() for batch in batches)]
    ends = np.cumsum([len(part) for part in parts])[1:]
    blocks = [Block(rows=len(b), end_offset=int(end), crc32=0) for b, end in zip(batches, ends, strict=True)]
    metadata = footer_metadata(schema, counts, blocks)
    path = tmp_path / "parts.arrow"
    path.write_bytes(b"".join(parts))
    with path.open("ab") as file:
        file.write(footer(path, schema, blocks, metadata))

    whole = tmp_path / "whole.arrow"
    with ipc.new_file(str(whole), schema, metadata=metadata) as writer:
        for batch in batches:
            writer.write_batch(batch)
    assert path.read_bytes() == whole.read_bytes()


def test_a_footer_needs_the_batches_that_were_promised(tmp_path: Path) -> None:
    batch = batch_of(pa.array([1]))
    path = tmp_path / "parts.arrow"
    path.write_bytes(head(batch.schema) + encode(batch).to_pybytes())
    end = path.stat().st_size
    with pytest.raises(OutputError, match=f"to {end + 8} are not a record batch: the file is damaged"):
        footer(path, batch.schema, [Block(rows=1, end_offset=end + 8, crc32=0)], {})
    path.write_bytes(path.read_bytes() + bytes(8))
    with pytest.raises(OutputError, match=f"a batch ends at byte {end}, expected {end + 8}: the file is damaged"):
        footer(path, batch.schema, [Block(rows=1, end_offset=end + 8, crc32=0)], {})


@pytest.mark.parametrize("name", VALUES)
def test_bytes_do_not_depend_on_how_a_batch_was_cut(name: str) -> None:
    values = [None if missing else VALUES[name](i) for i, missing in enumerate(MISSING)]
    column = pa.array(values)
    for begin, end in ((0, 13), (8, 21), (5, 18), (9, 9)):
        alone = pa.array(values[begin:end], column.type)
        assert encode(batch_of(column.slice(begin, end - begin))).equals(encode(batch_of(alone))), (begin, end)


def test_bytes_do_not_depend_on_how_a_file_was_read(tmp_path: Path) -> None:
    """Under a null, Parquet's reader leaves the bytes of its previous batch."""
    numbers = np.random.default_rng(0).integers(1, 1 << 40, 3000)
    missing = numbers % 3 == 0
    table = pa.table({"n": pa.array(numbers, mask=missing), "s": pa.array([{"a": n} for n in numbers], mask=missing)})
    pq.write_table(table, tmp_path / "corpus.parquet", row_group_size=700, use_dictionary=False)

    def read(batch_size: int) -> pa.RecordBatch:
        batches = pq.ParquetFile(tmp_path / "corpus.parquet").iter_batches(batch_size)
        return pa.Table.from_batches(batches).slice(1000, 500).combine_chunks().to_batches()[0]

    assert not read(64).serialize().equals(read(777).serialize())  # otherwise the test proves nothing
    assert encode(read(64)).equals(encode(read(777)))


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a"]).dictionary_encode(),
        pa.array(["a"], pa.string_view()),
        pa.array([[{"a": b"a"}]], pa.list_(pa.struct({"a": pa.binary_view()}))),
        pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), pa.array(["a"])),
    ],
    ids=lambda column: str(column.type),
)
def test_columns_with_bytes_elsewhere_are_refused(column: pa.Array) -> None:
    with pytest.raises(OutputError, match=r"column kept is .*, which is not supported: cast it or drop it"):
        require_plain(pa.schema({"plain": pa.string(), "kept": column.type}))


def test_the_first_damaged_block_is_found(tmp_path: Path) -> None:
    path = tmp_path / "blocks"
    path.write_bytes(b"123456789" * 3)
    blocks = [Block(rows=1, end_offset=9 * (i + 1), crc32=0xCBF43926) for i in range(3)]  # the check value of CRC-32
    assert first_damaged(path, blocks) is None
    path.write_bytes(b"123456789" * 2 + b"12345678")
    assert first_damaged(path, blocks) == 2
    path.write_bytes(b"123456789" + b"123456788" * 2)
    assert first_damaged(path, blocks) == 1
