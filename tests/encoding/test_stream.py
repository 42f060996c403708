"""`Encoder.stream`: results, order, look-ahead, errors and ending."""

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from fastvec import Encoder
from fastvec.errors import ModelError, UsageError
from fastvec.forward import Forward
from tests.helpers.checkpoints import break_last_token
from tests.helpers.tiny import SENTENCES, save_decoder

TEXTS = [f"{text} {index}" for index in range(6) for text in SENTENCES]  # 30
ROUNDING = 1e-6  # vectors of length 1, in other batches


class Source:
    """An endless iterator that counts what was taken from it."""

    def __init__(self) -> None:
        self.taken, self.closed = 0, False

    def __iter__(self) -> "Source":
        return self

    def __next__(self) -> str:
        self.taken += 1
        return TEXTS[self.taken % len(TEXTS)]

    def close(self) -> None:
        self.closed = True


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fastvec-")]


def test_a_text_gives_the_vector_that_encode_gives(encoder: Encoder) -> None:
    vectors = list(encoder.stream(iter(TEXTS)))
    assert np.array_equal(vectors, encoder.encode(TEXTS))  # one chunk: the same batches
    assert all(vector.base is None or vector.base.nbytes == vector.nbytes for vector in vectors)  # no view of a chunk


@pytest.mark.usefixtures("small_chunks", "chunks_ahead")
def test_items_of_any_size_come_in_order(encoder: Encoder) -> None:
    items: list[Any] = [
        TEXTS[0],
        TEXTS[1:4],
        [],
        pa.array(TEXTS[4:26]),  # more than two chunks
        np.array(TEXTS[26:28]),
        TEXTS[28],
        tuple(TEXTS[29:]),
    ]
    results = list(encoder.stream(items))
    assert [result.shape for result in results] == [(64,), (3, 64), (0, 64), (22, 64), (2, 64), (64,), (1, 64)]
    assert np.abs(np.concatenate([np.atleast_2d(r) for r in results]) - encoder.encode(TEXTS)).max() < ROUNDING


def test_an_instruction_and_a_prompt_name_are_those_of_encode(encoder: Encoder) -> None:
    vectors = list(encoder.stream(TEXTS, instruction="Find the like of it:"))
    assert np.array_equal(vectors, encoder.encode(TEXTS, instruction="Find the like of it:"))
    with pytest.raises(
        UsageError, match="no prompt named 'query': it has none"
    ):  # at once, before an item is asked for
        encoder.stream(TEXTS, prompt_name="query")


def batches() -> pa.RecordBatchReader:
    """Batches of 12, 0 and 18 rows, in which every seventh text is null."""
    texts = pa.array([None if row % 7 == 3 else text for row, text in enumerate(TEXTS)])
    table = pa.table({"id": range(30), "text": texts}, metadata={"made": "here"})
    parts = [table.slice(0, 12), table.slice(12, 0), table.slice(12)]
    return pa.RecordBatchReader.from_batches(
        table.schema,
        [pa.RecordBatch.from_arrays([c.combine_chunks() for c in part.columns], schema=table.schema) for part in parts],
    )


@pytest.mark.usefixtures("small_chunks", "chunks_ahead")
def test_a_reader_gives_its_batches_with_the_vectors(encoder: Encoder) -> None:
    expected = list(batches())
    found = list(encoder.stream(batches()))

    assert [batch.num_rows for batch in found] == [12, 0, 18]
    assert [batch.select(["id", "text"]) for batch in found] == expected
    schema = expected[0].schema.append(pa.field("embedding", pa.list_(pa.float32(), 64)))
    assert all(batch.schema.equals(schema, check_metadata=True) for batch in found)
    column = pa.Table.from_batches(found)["embedding"]
    assert column.is_null().to_pylist() == [row % 7 == 3 for row in range(30)]
    vectors = np.array(column.drop_null().to_pylist())
    assert np.abs(vectors - encoder.encode(column_texts(expected))).max() < ROUNDING


def column_texts(parts: list[pa.RecordBatch]) -> list[str]:
    return [text for part in parts for text in part["text"].to_pylist() if text is not None]


@pytest.mark.parametrize(
    ("columns", "column"),
    [
        ({"title": SENTENCES, "body": SENTENCES[::-1]}, "title"),
        ({"doc": [{"text": text} for text in SENTENCES]}, "doc.text"),
        ({"sentence": pa.array([text.encode() for text in SENTENCES])}, "sentence"),
        ({"id": list("abcde"), "text": pa.array(SENTENCES).dictionary_encode()}, None),
        ({"key": range(5), "words": SENTENCES}, None),
    ],
)
def test_the_text_column_is_named_or_chosen(encoder: Encoder, columns: dict[str, Any], column: str | None) -> None:
    table = pa.concat_tables([pa.table(columns).slice(0, 2), pa.table(columns).slice(2)])
    [found] = encoder.stream([table], column=column, vector_column="vector")
    assert found.drop_columns("vector") == table
    assert np.abs(np.array(found["vector"].to_pylist()) - encoder.encode(SENTENCES)).max() < ROUNDING


NAMES = pa.table({"text": ["x"]})


@pytest.mark.parametrize(
    ("items", "column", "message"),
    [
        (
            ["x", pa.table({"a": ["x"], "b": ["y"]})],
            None,
            "item 1: cannot tell which column is the text; give it with --column. Its columns: a (string), b (string)",
        ),
        ([NAMES, pa.table({"body": ["x"]})], None, "item 1 has no column 'text'. Its columns: body (string)"),
        (
            [NAMES, pa.table({"text": [1]})],
            "text",
            "item 1, column 'text': expected strings, got Arrow values of type int64: give the column with the texts",
        ),
        (
            ["x", NAMES.append_column("embedding", [["y"]])],
            None,
            "item 1 has a column 'embedding' already: choose another vector_column",
        ),
        ([NAMES, ["x"]], "text", "item 1 is a list, which has no columns: leave column out"),
        (["x", None], None, "item 1: expected texts in a list, an array or a column, got a value of type NoneType"),
        (["x", ["y", None]], None, "item 1: text 1 is a NoneType, not a string: leave it out or fill it in"),
        (["x", pa.array([None, "y"])], None, "item 1: text 0 is a NoneType, not a string: leave it out or fill it in"),
    ],
)
def test_an_item_that_cannot_be_encoded_is_named_in_its_turn(
    encoder: Encoder, items: list[Any], column: str | None, message: str
) -> None:
    results = encoder.stream(items, column=column)
    next(results)
    with pytest.raises(UsageError) as refused:
        next(results)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    "source", ["a text", {"a": 1}, 5, pa.table({"a": ["x"]}), pa.record_batch({"a": ["x"]}), pl.DataFrame({"a": ["x"]})]
)
def test_what_is_not_a_stream_is_refused(encoder: Encoder, source: Any) -> None:
    with pytest.raises(
        UsageError, match=f"stream takes an iterator of texts.*, got a value of type {type(source).__name__}"
    ):
        encoder.stream(source)


def test_the_source_is_read_a_few_chunks_ahead(encoder: Encoder, small_chunks: int, chunks_ahead: int) -> None:
    source = Source()
    with closing(encoder.stream(source)) as results:
        for returned, _ in enumerate(results):
            assert source.taken <= (returned // small_chunks + 1 + 3 + 3 * chunks_ahead) * small_chunks
            if returned == 50 * small_chunks:
                break


@pytest.mark.usefixtures("small_chunks")
def test_large_tables_with_small_texts_are_held_a_few_at_a_time(encoder: Encoder) -> None:
    table = pa.table({"text": ["a text"], "image": [bytes(8 << 20)]})  # 8 MB, and a chunk takes at most 16
    taken = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal taken
        while True:
            taken += 1
            yield table

    with closing(encoder.stream(tables())) as results:
        for returned, _ in zip(range(20), results, strict=False):
            assert taken <= (returned // 2 + 1 + 3) * 2


@pytest.mark.usefixtures("small_chunks")
def test_what_is_fastest_is_measured_once_the_stream_is_long(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(Encoder, "measure_for", lambda self, text_bytes: seen.append(text_bytes))
    list(encoder.stream(TEXTS))
    assert seen == [sum(map(len, TEXTS[:end])) for end in (8, 16, 24, 30)]


@pytest.mark.usefixtures("small_chunks", "chunks_ahead")
def test_leaving_early_ends_the_threads_and_closes_the_source(encoder: Encoder) -> None:
    source = Source()
    for _ in encoder.stream(source):
        break
    assert threads() == []
    assert source.closed


def test_a_generator_is_closed_and_a_finished_one_has_ended(encoder: Encoder) -> None:
    ended = []

    def texts() -> Iterator[str]:
        try:
            yield from TEXTS
        finally:
            ended.append(threading.current_thread().name)

    results = encoder.stream(texts())
    next(results)
    results.close()
    list(encoder.stream(texts()))
    assert len(ended) == 2
    assert threads() == []


@pytest.mark.usefixtures("small_chunks", "chunks_ahead")
def test_an_error_of_the_source_comes_after_the_results_before_it(encoder: Encoder) -> None:
    def texts() -> Iterator[Any]:
        yield from TEXTS[:12]
        yield TEXTS[12:14]
        raise OSError("the connection was lost")

    found: list[Any] = []
    with pytest.raises(OSError, match="the connection was lost"):
        found.extend(encoder.stream(texts()))  # keeps what came before the error
    assert [vectors.ndim for vectors in found] == [1] * 12 + [2]
    assert threads() == []


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """An encoder that has no vector for a text with "5"."""
    folder = break_last_token(save_decoder(tmp_path_factory.mktemp("broken"), "llama"), "5")
    return Encoder.from_pretrained(folder, dtype="float32", device="cpu")


@pytest.mark.usefixtures("small_chunks", "chunks_ahead")
@pytest.mark.parametrize(
    ("item", "name"),
    [
        ("one:5", "text 12"),
        (["one:1"] * 17 + ["one:5"], "text 17 of item 12"),  # in another chunk than its first text
        (pa.record_batch({"text": [None, "one:1", None, "one:5"]}), "row 3 of item 12"),
    ],
)
def test_a_text_without_a_vector_is_named_in_its_turn(broken: Encoder, item: Any, name: str) -> None:
    found: list[Any] = []
    with pytest.raises(ModelError, match=rf"^{name} has no vector \(non_finite_vector\): try dtype float32$"):
        found.extend(broken.stream([*["one:1"] * 12, item, "one:2"]))
    assert len(found) == 12


@pytest.mark.usefixtures("small_chunks", "chunks_ahead")
def test_an_error_of_the_model_comes_after_the_chunks_before_it(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, calls = Encoder.begin, []

    def failing(self: Encoder, *args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise ModelError("no memory left")
        return begin(self, *args)

    monkeypatch.setattr(Encoder, "begin", failing)
    found: list[Any] = []
    with pytest.raises(ModelError, match="no memory left"):
        found.extend(encoder.stream(TEXTS))
    assert len(found) == 16


def test_on_a_cpu_the_callers_thread_encodes(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, used = Forward.__call__, set()

    def noted(self: Forward, *args: Any) -> torch.Tensor:
        used.add(threading.current_thread())
        return forward(self, *args)

    monkeypatch.setattr(Forward, "__call__", noted)
    list(encoder.stream(TEXTS))
    assert used == {threading.current_thread()}


def test_encode_may_be_called_while_a_stream_runs(encoder: Encoder, small_chunks: int) -> None:
    expected = encoder.encode(["a query"], instruction="Find:")
    for returned, vector in enumerate(encoder.stream(Source())):
        assert np.abs(encoder.encode(["a query"], instruction="Find:") - expected).max() < ROUNDING
        assert np.isfinite(vector).all()
        if returned == 10 * small_chunks:
            break
