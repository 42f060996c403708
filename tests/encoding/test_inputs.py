"""What `Encoder.encode` takes and returns."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from fastvec import Encoder
from fastvec.errors import UsageError
from tests.helpers.tiny import SENTENCES


def pandas_series(texts: list[Any]) -> Any:
    return pytest.importorskip("pandas", reason="needs the extra integrations").Series(
        texts, index=range(9, 9 + len(texts))
    )


class ArrowArray:
    """An array of another library, known only by the Arrow C interface."""

    def __init__(self, texts: list[Any]) -> None:
        self._array = pa.array(texts)

    def __arrow_c_array__(self, requested_schema: object = None) -> Any:
        return self._array.__arrow_c_array__(requested_schema)


class ArrowColumn:
    """A column of another library, known only by the Arrow C stream interface."""

    def __init__(self, texts: list[Any]) -> None:
        self._column = pa.chunked_array([texts[:2], texts[2:]], pa.string())

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        return self._column.__arrow_c_stream__(requested_schema)


def arrow(type: pa.DataType) -> Callable[[list[Any]], pa.Array]:
    return lambda texts: pa.array(texts, pa.string()).cast(type)


# each makes a column of texts, in which None is a null
COLUMNS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "numpy objects": lambda texts: np.array(texts, dtype=object),
    "numpy StringDType": lambda texts: np.array(texts, dtype=np.dtypes.StringDType(na_object=None)),
    "pandas": pandas_series,
    "polars": pl.Series,
    "polars categories": lambda texts: pl.Series(texts, dtype=pl.Categorical),
    "Arrow string": arrow(pa.string()),
    "Arrow large_string": arrow(pa.large_string()),
    "Arrow string_view": arrow(pa.string_view()),
    "Arrow dictionary": lambda texts: pa.array(texts, pa.string()).dictionary_encode(),
    "Arrow chunks": lambda texts: pa.chunked_array([texts[:2], [], texts[2:]], pa.string()),
    "Arrow slice": lambda texts: pa.array(["before", *texts, "after"]).slice(1, len(texts)),
    "Arrow C array": ArrowArray,
    "Arrow C stream": ArrowColumn,
}


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_a_column_gives_the_vectors_of_its_list(encoder: Encoder, column: Callable[[list[Any]], Any]) -> None:
    assert np.array_equal(encoder.encode(column(SENTENCES)), encoder.encode(SENTENCES))


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_a_null_is_refused_with_its_index(encoder: Encoder, column: Callable[[list[Any]], Any]) -> None:
    with pytest.raises(UsageError, match=r"^text 3 is a (NoneType|float), not a string: leave it out or fill it in$"):
        encoder.encode(column([*SENTENCES[:3], None, SENTENCES[4]]))


def test_an_array_of_fixed_width_strings(encoder: Encoder) -> None:
    assert np.array_equal(encoder.encode(np.array(SENTENCES)), encoder.encode(SENTENCES))


def test_invalid_utf8_in_an_array_reads_as_the_replacement_character(encoder: Encoder) -> None:
    invalid = pa.array([b"a\xffb"]).view(pa.string())
    assert np.array_equal(encoder.encode(invalid), encoder.encode(["a\ufffdb"]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (5, "expected texts in a list, an array or a column, got a value of type int"),
        ({"a": 1}, "expected texts in a list, an array or a column, got a value of type dict"),
        (b"a text", "expected texts in a list, an array or a column, got a value of type bytes"),
        ([b"a text"], "text 0 is a bytes, not a string: leave it out or fill it in"),
        (np.array([1.5]), "text 0 is a float, not a string: leave it out or fill it in"),
        (np.array([["a"]]), "expected an array of one dimension, got 2: give the texts as values[n]"),
        (pa.array([1]), "expected strings, got Arrow values of type int64: give the column with the texts"),
        (
            pa.table({"text": ["a"]}),
            "expected strings, got Arrow values of type struct<text: string>: give the column with the texts",
        ),
        (
            pl.DataFrame({"text": ["a"]}),
            "expected strings, got Arrow values of type struct<text: string_view>: give the column with the texts",
        ),
    ],
)
def test_what_is_not_text_is_refused_in_one_line(encoder: Encoder, values: Any, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        encoder.encode(values)
    assert str(refused.value) == message


def test_a_string_gives_one_vector(encoder: Encoder) -> None:
    expected = encoder.encode(["a text"])[0]
    assert np.array_equal(encoder.encode("a text"), expected)
    assert np.array_equal(encoder.encode_query("a text"), expected)
    assert torch.equal(encoder.encode("a text", convert_to="torch"), torch.from_numpy(expected))
    assert encoder.encode("a text", convert_to="arrow").as_py() == expected.tolist()


@pytest.mark.parametrize("texts", [SENTENCES, []], ids=["some", "none"])
def test_vectors_as_a_tensor_or_an_arrow_array(encoder: Encoder, texts: list[str]) -> None:
    expected = encoder.encode(texts)

    tensor = encoder.encode(texts, convert_to="torch")
    assert tensor.dtype == torch.float32
    assert tensor.device == torch.device("cpu")
    assert np.array_equal(tensor.numpy(), expected)

    array = encoder.encode(texts, convert_to="arrow")
    assert array.type == pa.list_(pa.float32(), 64)
    assert array.null_count == 0
    assert array.to_pylist() == expected.tolist()


def test_an_unknown_format_is_refused(encoder: Encoder) -> None:
    with pytest.raises(UsageError, match="convert_to 'jax' is not known: choose numpy, torch, arrow"):
        encoder.encode(["a"], convert_to="jax")  # type: ignore[call-overload]


def test_the_token_budget_of_a_call_ends_with_it(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    own, used = encoder.batch_tokens, []
    begin = Encoder._begin

    def noted(self: Encoder, *args: Any) -> Any:
        used.append(self.batch_tokens)
        return begin(self, *args)

    monkeypatch.setattr(Encoder, "_begin", noted)
    few = encoder.encode(SENTENCES, batch_tokens=20)
    whole = encoder.encode(SENTENCES)

    assert used == [20, own]
    assert np.abs(few - whole).max() < 1e-6
    with pytest.raises(UsageError, match="batch_tokens 0 is out of range: the minimum is 1"):
        encoder.encode(SENTENCES, batch_tokens=0)
