import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvec.corpus import reader
from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import Chunk, ChunkLimits, InputFile
from fastvec.errors import FastvecError, InputError, UsageError
from tests.helpers.corpora import ALL, read, read_kept, read_texts, texts, write_arrow, write_parquet


def test_rows_are_numbered_over_all_files(tmp_path: Path) -> None:
    a = write_parquet(tmp_path / "a.parquet", texts(["a0", "a1", "a2"]), group_rows=2)
    b = write_arrow(tmp_path / "b.arrow", texts([]))
    c = write_arrow(tmp_path / "c.arrow", texts(["c0", None, "c2"]), group_rows=1)

    corpus = open_corpus([c, b, a])
    chunks = list(corpus.chunks(ChunkLimits(rows=4, bytes=100), first_index=7))

    assert (corpus.columns[0], corpus.rows) == ("text", 6)
    assert corpus.files == tuple(
        InputFile(uri=str(path), size=path.stat().st_size, version=path.stat().st_mtime_ns, first_row=first, rows=rows)
        for path, first, rows in [(c, 0, 3), (b, 3, 0), (a, 3, 3)]
    )
    assert [(chunk.index, chunk.first_row, chunk.texts.to_pylist()) for chunk in chunks] == [
        (7, 0, ["c0", None, "c2", "a0"]),
        (8, 4, ["a1", "a2"]),
    ]
    assert list(corpus.locate(range(6))) == [(str(c), {"row_group": n}) for n in (0, 1, 2)] + [
        (str(a), {"row_group": n}) for n in (0, 0, 1)
    ]
    assert list(corpus.locate([2, 5])) == [(str(c), {"row_group": 2}), (str(a), {"row_group": 1})]


@pytest.mark.parametrize(
    ("limit", "expected", "rows"),
    [(0, [], (0, 0)), (2, ["a", "b"], (2, 0)), (4, ["a", "b", "c", "d"], (3, 1)), (99, [*"abcdef"], (3, 3))],
)
def test_a_limit_counts_rows_over_all_files(tmp_path: Path, limit: int, expected: list[str], rows: tuple[int]) -> None:
    files = [write_parquet(tmp_path / f"{name}.parquet", texts([*name])) for name in ("abc", "def")]

    corpus = open_corpus(files, limit=limit)

    assert [text for chunk in corpus.chunks(ALL) for text in chunk.texts.to_pylist()] == expected
    assert tuple(file.rows for file in corpus.files) == rows


@pytest.mark.parametrize(
    ("columns", "column", "chosen"),
    [
        ({"n": pa.int64(), "prose": pa.string()}, None, "prose"),
        ({"n": pa.int64(), "prose": pa.dictionary(pa.int8(), pa.string_view())}, None, "prose"),
        ({"title": pa.string(), "body": pa.string(), "content": pa.string()}, None, "content"),
        ({"title": pa.string(), "body": pa.string()}, "title", "title"),
        ({"image": pa.binary(), "prose": pa.string()}, None, "prose"),
        ({"image": pa.binary(), "text": pa.binary()}, None, "text"),
        ({"a.b": pa.string(), "a": pa.struct([("b", pa.string())])}, "a.b", "a.b"),
        ({"id": pa.string(), "text": pa.large_string()}, None, "text"),
        ({"id": pa.int64(), "text": pa.json_()}, None, "text"),
    ],
)
def test_the_text_column_is_chosen(
    tmp_path: Path, columns: dict[str, pa.DataType], column: str | None, chosen: str
) -> None:
    row = {name: {"b": "other"} if name == "a" else 1 if type == pa.int64() else name for name, type in columns.items()}
    arrays = [
        pa.array([row[name]]).dictionary_encode() if pa.types.is_dictionary(type) else pa.array([row[name]], type)
        for name, type in columns.items()
    ]
    path = write_parquet(tmp_path / "c.parquet", pa.Table.from_arrays(arrays, names=list(columns)))

    corpus = open_corpus([path], column=column)

    assert corpus.columns[0] == chosen
    assert read_texts(path, column=column) == [chosen]


TWO = {"title": pa.array(["t"]), "name": pa.array(["n"])}


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (TWO, {}, "cannot tell which column is the text; give it with --column. Its columns: title (string), name"),
        ({"n": pa.array([1])}, {}, "no column contains text. Its columns: n (int64)"),
        ({"tags": pa.array([["a"]])}, {"column": "tags"}, "column 'tags' is list<item: string>, not text"),
        ({"n": pa.array([1])}, {"column": "n"}, "column 'n' is int64, not text"),
        (
            {"id": pa.array(["7"]), "text": pa.array([["a"]])},
            {},
            "column 'text' is list<item: string>, not text; give another column with --column. "
            "Its columns: id (string)",
        ),
        ({"text": pa.array([1])}, {}, "column 'text' is int64, not text. Its columns: text (int64)"),
        ({"doc": pa.array([{"a": 1}])}, {"column": "doc.a"}, "column 'doc.a' is int64, not text"),
        ({"doc": pa.array([{"a": "b"}])}, {"column": "doc.b"}, "there is no column 'doc.b'. Its columns: doc (struct<"),
        (TWO, {"column": "text"}, "there is no column 'text'. Its columns: title (string), name (string)"),
        (TWO, {"column": "name", "keep": ["id"]}, "there is no column 'id'"),
        (TWO, {"column": "name", "keep": ["title", "title"]}, "column 'title' is kept twice"),
        (
            {"text": pa.array(["a"]), "row": pa.array([1])},
            {"keep": ["row"], "output_columns": ("row", "v")},
            "kept column 'row' has the name of an output column",
        ),
        (
            {"text": pa.array(["a"]), "row": pa.array([1])},
            {"keep": None, "output_columns": ("row", "v")},
            "kept column 'row' has the name of an output column",
        ),
        (
            {"text": pa.array(["a"]), "v": pa.array([1])},
            {"keep": None, "output_columns": ("row", "v")},
            "kept column 'v' has the name of an output column",
        ),
        (
            {"text": pa.array(["a"]), "runs": pa.RunEndEncodedArray.from_arrays([1], [7])},
            {"keep": ["runs"]},
            "column 'runs' cannot be kept: type run_end_encoded<run_ends: int64, values: int64> cannot be written to "
            "the output: cast the column, or do not keep it",
        ),
        ({f"column{n}": pa.array(["a"]) for n in range(99)}, {}, "column19 (string) and 79 more"),
    ],
)
def test_columns_that_do_not_fit_are_refused(
    tmp_path: Path, columns: dict[str, pa.Array], options: dict[str, Any], message: str
) -> None:
    path = write_arrow(tmp_path / "c.arrow", pa.table(columns))

    with pytest.raises((InputError, UsageError), match=re.escape(message)):
        open_corpus([path], **options)


def test_kept_columns_are_written_plainly(tmp_path: Path) -> None:
    noon = datetime.fromisoformat("2024-02-29T12:00:00Z")
    rows: list[dict[str, Any]] = [
        {
            "text": "a",
            "id": 1,
            "tags": ["x", "y"],
            "at": noon,
            "price": Decimal("1.50"),
            "meta": {"a": "m"},
            "kind": "k",
        },
        {"text": None, "id": None, "tags": None, "at": None, "price": None, "meta": None, "kind": None},
        {"text": "b", "id": 3, "tags": [], "at": noon, "price": Decimal("0.00"), "meta": {"a": None}, "kind": "k"},
    ]
    plain = pa.schema(
        [
            ("id", pa.int16()),
            ("tags", pa.list_(pa.string())),
            ("at", pa.timestamp("us", tz="UTC")),
            ("price", pa.decimal128(10, 2)),
            ("meta", pa.struct([("a", pa.string())])),
            ("kind", pa.string()),
            ("text", pa.large_string()),
        ]
    )
    table = pa.Table.from_pylist(rows, pa.schema([*plain])).replace_schema_metadata({"pandas": "{}"})
    table = table.set_column(
        5, pa.field("kind", pa.dictionary(pa.int32(), pa.string())), table["kind"].dictionary_encode()
    )
    names = plain.names

    for path in (
        write_parquet(tmp_path / "c.parquet", table, group_rows=2),
        write_arrow(tmp_path / "c.arrow", table, group_rows=2),
    ):
        corpus = open_corpus([path], keep=names, column="text")
        kept = read_kept(corpus)

        assert corpus.kept_schema.equals(plain, check_metadata=True)
        assert kept.to_pylist() == [{name: row[name] for name in names} for row in rows]


def test_all_columns_are_kept_in_their_order_or_none(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "c.parquet", pa.table({"b": ["x", "y"], "text": ["t", "u"], "a": [1, 2]}))

    (everything,) = read(path, keep=None)
    (nothing,) = read(path)

    assert everything.kept.to_pydict() == {"b": ["x", "y"], "text": ["t", "u"], "a": [1, 2]}
    assert (nothing.kept.num_rows, nothing.kept.num_columns) == (2, 0)


@pytest.mark.parametrize("write", [write_parquet, write_arrow])
def test_invalid_utf8_is_repaired_counted_and_repaired_where_it_is_kept(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    values = [b"fine", b"\xff", None, b"\xed\xa0\x80"] * 2
    bad = pa.array(values, pa.binary()).view(pa.string())
    path = write(
        tmp_path / "c", pa.table({"text": bad, "other": bad, "raw": pa.array(values, pa.binary())}), group_rows=3
    )

    first, second = read(path, column="text", keep=None, limits=ChunkLimits(rows=5, bytes=1000))
    assert first.texts.to_pylist() == ["fine", "�", None, "���", "fine"]
    assert first.kept["text"].to_pylist() == first.kept["other"].to_pylist() == first.texts.to_pylist()
    assert (first.repaired, second.repaired) == (2, 2)
    assert second.kept["raw"].to_pylist() == values[5:]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"text": pa.array([1]), "id": pa.array([1])}, "b.arrow: column 'text' is int64, not text"),
        ({"text": pa.array([b"x"]), "id": pa.array([1])}, "b.arrow: column 'text' is binary, but string in "),
        ({"text": pa.array(["x"]), "id": pa.array(["1"])}, "b.arrow: kept column 'id' is string, but int64 in "),
        (
            {"text": pa.array(["x"]), "id": pa.array([1], pa.int32())},
            "b.arrow: kept column 'id' is int32, but int64 in ",
        ),
        ({"text": pa.array(["x"])}, "b.arrow: there is no column 'id'"),
        ({"id": pa.array([1])}, "b.arrow: there is no column 'text'"),
    ],
)
def test_files_whose_columns_differ_are_refused(tmp_path: Path, second: dict[str, pa.Array], message: str) -> None:
    first = write_parquet(tmp_path / "a.parquet", pa.table({"text": ["x"], "id": [1]}))
    write_arrow(tmp_path / "b.arrow", pa.table(second))

    with pytest.raises(FastvecError, match=re.escape(message)):
        open_corpus([first, tmp_path / "b.arrow"], column="text", keep=["id"])


def test_files_may_differ_in_what_does_not_matter(tmp_path: Path) -> None:
    """They may differ in extra columns, column order, dictionaries, nullability, metadata and string type."""
    id_field, text_field = pa.field("id", pa.list_(pa.int64())), pa.field("text", pa.string(), nullable=False)
    strict = pa.field(
        "id", pa.list_(pa.field("element", pa.int64(), nullable=False)), nullable=False, metadata={"k": "v"}
    )
    tables = [
        pa.table([["a"], [[1]]], pa.schema([text_field, id_field])),
        pa.table(
            [["b"], [[2]], [0.5]], pa.schema([pa.field("text", pa.large_string()), id_field, ("extra", pa.float64())])
        ),
        pa.table(
            [[[3]], pa.array(["c"]).dictionary_encode()],
            pa.schema([strict, ("text", pa.dictionary(pa.int32(), pa.string()))]),
        ),
        pa.table(
            [["d"], [[4]]], pa.schema([pa.field("text", pa.string_view()), id_field], metadata={"huggingface": "{}"})
        ),
    ]
    paths = [write_parquet(tmp_path / f"{n}.parquet", table) for n, table in enumerate(tables)]
    paths += [write_arrow(tmp_path / f"{n}.arrow", table) for n, table in enumerate(tables)]

    (chunk,) = read(*paths, keep="id")

    assert chunk.texts.to_pylist() == [*"abcdabcd"]
    assert chunk.kept["id"].to_pylist() == [[1], [2], [3], [4]] * 2


def test_a_huge_text_is_alone_in_its_chunk(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "c.parquet", texts(["a", "b", "huge" * 10, None, "", "c" * 10, "d"]))
    chunks = read(path, limits=ChunkLimits(rows=100, bytes=10))
    assert [chunk.texts.to_pylist() for chunk in chunks] == [["a", "b"], ["huge" * 10], [None, "", "c" * 10], ["d"]]


@pytest.mark.parametrize("limits", [(0, 1), (1, 0), (1, 1 << 30)])
def test_limits_out_of_range_are_refused(limits: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="a chunk needs rows >= 1 and bytes from 1 to"):
        ChunkLimits(rows=limits[0], bytes=limits[1])


Row = tuple[str | None, list[str | None] | None]


@dataclass(frozen=True)
class Layout:
    """One layout of the same rows: where files end, how many rows a row group has, and the format."""

    file_ends: Sequence[int]
    group_rows: int
    dictionary: bool
    arrow: bool

    def write(self, folder: Path, rows: Sequence[Row]) -> list[Path]:
        folder.mkdir()
        ends = [0, *sorted(min(end, len(rows)) for end in self.file_ends), len(rows)]
        paths = []
        for number, (begin, end) in enumerate(pairwise(ends)):
            text = pa.array([text for text, _ in rows[begin:end]], pa.string())
            tags = pa.array([tags for _, tags in rows[begin:end]], pa.list_(pa.string()))
            table = pa.table({"text": text.dictionary_encode() if self.dictionary else text, "tags": tags})
            write = write_arrow if self.arrow else write_parquet
            paths.append(write(folder / f"{number}.data", table, group_rows=self.group_rows))
        return paths


words = st.text(alphabet="aé", max_size=6) | st.none()
rows_of_words = st.lists(st.tuples(words, st.lists(words, max_size=3) | st.none()), min_size=1, max_size=30)
layouts = st.builds(
    Layout,
    file_ends=st.lists(st.integers(0, 30), max_size=3),
    group_rows=st.integers(1, 30),
    dictionary=st.booleans(),
    arrow=st.booleans(),
)
all_limits = st.builds(ChunkLimits, rows=st.integers(1, 12), bytes=st.integers(1, 60), row_bytes=st.integers(1, 90))


def cut(rows: Sequence[Row], limits: ChunkLimits) -> Iterator[list[Row]]:
    """The definition: cut `rows` into chunks, row by row."""
    chunk: list[Row] = []
    size = 0
    for text, tags in rows:
        own = sum(len((word or "").encode()) for word in [text, *(tags or [])])
        row_size = max(min(own, limits.row_bytes or own), own * limits.bytes // reader.MEMORY_BYTES)
        if chunk and (len(chunk) == limits.rows or size + row_size > limits.bytes):
            yield chunk
            chunk, size = [], 0
        chunk.append((text, tags))
        size += row_size
    yield chunk


def rows_of(chunk: Chunk) -> list[Row]:
    return list(zip(chunk.texts.to_pylist(), chunk.kept["tags"].to_pylist(), strict=True))


@patch.object(reader, "MEMORY_BYTES", 100)
@settings(max_examples=60)
@given(rows=rows_of_words, layout=layouts, limits=all_limits)
def test_chunks_follow_from_the_rows_alone_also_when_resumed(
    rows: list[Row], layout: Layout, limits: ChunkLimits
) -> None:
    with TemporaryDirectory() as folder:
        corpus = open_corpus(layout.write(Path(folder) / "in", rows), column="text", keep=["tags"])

        chunks = list(corpus.chunks(limits))
        assert [rows_of(chunk) for chunk in chunks] == list(cut(rows, limits))

        for number, chunk in enumerate(chunks):
            resumed = list(corpus.chunks(limits, first_row=chunk.first_row, first_index=chunk.index))
            assert [(c.index, c.first_row, rows_of(c)) for c in resumed] == [
                (c.index, c.first_row, rows_of(c)) for c in chunks[number:]
            ]
        assert list(corpus.chunks(limits, first_row=len(rows))) == []
