"""Parquet outputs: the same rows as in Arrow, for pyarrow and other readers, with checksums that find damage."""

from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fastvec.errors import OutputError
from fastvec.output import parquet_file, reader
from fastvec.output.inspect import inspect
from fastvec.output.verify import verify
from fastvec.output.writer import Writer
from tests.helpers.outputs import CHUNKS, DIMS, ROWS, make_job, make_schema, read_output, run_job

DTYPES = ["float32", "float16", "int8", "binary"]
LEAF = "embedding.list.element"


@pytest.fixture
def arrow(tmp_path: Path) -> Path:
    return tmp_path / "vecs.arrow"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "vecs.parquet"


def stored_as(output: Path) -> pq.ColumnChunkMetaData:
    columns = map(pq.ParquetFile(output).metadata.row_group(0).column, range(3))
    return next(column for column in columns if column.path_in_schema == LEAF)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_has_the_rows_and_metadata_of_the_arrow_file(arrow: Path, output: Path, dtype: str) -> None:
    run_job(arrow, dtype=dtype)
    run_job(output, dtype=dtype)
    expected, found = read_output(arrow), pq.read_table(output)
    assert found.equals(expected)
    assert found.schema.metadata == expected.schema.metadata
    with pq.ParquetFile(output) as file:
        assert file.metadata.metadata[b"fastvec.rows"] == b"35"
    verified = verify(output)
    assert verified.return_code == 0
    assert [check.name for check in verified.checks][:4] == ["file", "row groups", "footer", "columns"]
    changed = {"path": str(output), "size_bytes": output.stat().st_size}
    assert inspect(output).to_json() == {**inspect(arrow).to_json(), **changed}


@pytest.mark.parametrize(
    ("dtype", "encodings"),
    [
        ("float32", {"RLE", "BYTE_STREAM_SPLIT"}),
        ("float16", {"RLE", "PLAIN"}),
        ("int8", {"RLE", "PLAIN", "RLE_DICTIONARY"}),
        ("binary", {"RLE", "PLAIN", "RLE_DICTIONARY"}),
    ],
)
def test_vectors_are_encoded_by_their_dtype(output: Path, dtype: str, encodings: set[str]) -> None:
    run_job(output, dtype=dtype)
    stored = stored_as(output)
    assert (set(stored.encodings), stored.compression, stored.is_stats_set) == (encodings, "ZSTD", False)
    row = pq.ParquetFile(output).metadata.row_group(0).column(1)
    assert (row.path_in_schema, row.is_stats_set) == ("row", True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_polars_and_duckdb_read_the_vectors(arrow: Path, output: Path, dtype: str) -> None:
    run_job(arrow, dtype=dtype)
    run_job(output, dtype=dtype)
    expected = read_output(arrow)["embedding"].to_pylist()
    width = DIMS // 8 if dtype == "binary" else DIMS

    frame = pl.read_parquet(output)
    assert frame["row"].to_list() == list(range(CHUNKS * ROWS))
    assert [None if vector is None else list(vector) for vector in frame["embedding"].to_list()] == expected
    assert frame.filter(pl.col("embedding").is_not_null())["embedding"].to_numpy().shape == (26, width)

    found = duckdb.execute(f"SELECT row, id, embedding FROM '{output}' ORDER BY row").fetchall()
    assert [vector for *_, vector in found] == expected
    nearest = "SELECT row FROM (SELECT row, embedding::FLOAT[8] AS e FROM '{}') ORDER BY array_distance(e, ?::FLOAT[8])"
    if dtype == "float32":
        assert duckdb.execute(nearest.format(output), [expected[7]]).fetchone() == (7,)


def test_row_groups_are_bounded(output: Path, arrow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_file, "GROUP_BYTES", 1000)  # a chunk has 262 bytes or more
    run_job(arrow)
    run_job(output)
    with pq.ParquetFile(output) as file:
        assert 1 < file.num_row_groups < CHUNKS
    assert pq.read_table(output).equals(read_output(arrow))
    assert verify(output).return_code == 0
    norms = inspect(output).norms
    assert norms is not None
    assert norms.vectors == CHUNKS * ROWS - 9


def test_an_output_without_rows(output: Path) -> None:
    schema = make_schema()
    inputs = {b"fastvec.inputs": b'[{"uri": "a.parquet", "first_row": 0, "rows": 0}]'}
    writer = Writer.open(output, make_job())
    writer.begin(schema.with_metadata({**schema.metadata, **inputs}))
    writer.finish([])
    assert verify(output).return_code == 0
    assert pq.read_table(output).num_rows == 0
    content = output.read_bytes()
    for at in range(len(content)):
        output.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert verify(output).return_code == 1


def test_damage_is_told_by_its_place(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_file, "GROUP_BYTES", 1000)
    run_job(output)
    content, blocks = output.read_bytes(), reader.read_output(output).blocks
    at = blocks[1].end_offset - 9
    output.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert failed(output) == {
        "row groups": f"row group 1 (rows {blocks[0].rows} to {blocks[0].rows + blocks[1].rows - 1}, "
        f"bytes {blocks[0].end_offset:,} to {blocks[1].end_offset - 1:,}) does not match its CRC32"
    }
    output.write_bytes(content.replace(b'"tokens": 301', b'"tokens": 302'))
    assert failed(output) == {
        "file": f"{output} has a damaged footer: its metadata, which stand after all rows, fail their checksum"
    }


def failed(output: Path) -> dict[str, str]:
    return {check.name: check.detail for check in verify(output).checks if not check.passed}


def test_a_type_that_parquet_has_not_is_refused_by_its_column() -> None:
    schema = pa.schema([pa.field("id", pa.int64()), pa.field("either", pa.dense_union([pa.field("a", pa.int8())]))])
    with pytest.raises(
        OutputError, match=r"^column either is dense_union<a: int8=0>, which Parquet cannot store: drop"
    ):
        parquet_file.require_storable(schema)


def test_the_order_of_the_footers_metadata_does_not_matter(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = pq.ParquetWriter.add_key_value_metadata
    monkeypatch.setattr(
        pq.ParquetWriter,
        "add_key_value_metadata",
        lambda writer, metadata: add(writer, dict(reversed(metadata.items()))),
    )
    run_job(output)
    assert verify(output).return_code == 0


def test_a_pyarrow_with_another_footer_is_refused_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pq.ParquetWriter, "add_key_value_metadata", lambda writer, metadata: None)
    with pytest.raises(
        OutputError, match=r"footers of pyarrow .*: write a .arrow file, or install an earlier pyarrow$"
    ):
        parquet_file.require_storable(make_schema())
