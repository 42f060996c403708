"""What the items of a stream may be, and what is made of their vectors: texts, batches of texts, Arrow tables.

Shapes: n texts, D dimensions of a vector.
"""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.corpus.columns import array_at, path_to
from fastvec.corpus.text_column import columns_of, text_column
from fastvec.encoding.inputs import read_column, read_texts
from fastvec.errors import InputError, UsageError
from fastvec.output.vector_column import to_column

FloatArray = npt.NDArray[np.float32]


class Item(Protocol):
    """An item whose texts are taken once, so that they are not in memory for longer than their chunk."""

    nbytes: int  # in memory until the result is made, beside the texts that were taken

    def take_texts(self) -> list[str]: ...
    def name_of(self, row: int) -> str:
        """Return what an error calls text `row` of those taken."""
        ...

    def result(self, vectors: FloatArray) -> Any:
        """Return the result, given the vectors [n, D] of the texts."""
        ...


class _Text:
    """A single text, which becomes a vector [D]."""

    nbytes = 0

    def __init__(self, index: int, text: str) -> None:
        self._index, self._text = index, text

    def take_texts(self) -> list[str]:
        taken, self._text = [self._text], ""
        return taken

    def name_of(self, row: int) -> str:
        return f"text {self._index}"

    def result(self, vectors: FloatArray) -> Any:
        return vectors[0]


class _Texts:
    """A batch of texts, which becomes vectors [n, D]."""

    nbytes = 0

    def __init__(self, index: int, texts: list[str]) -> None:
        self._index, self._texts = index, texts

    def take_texts(self) -> list[str]:
        taken, self._texts = self._texts, []
        return taken

    def name_of(self, row: int) -> str:
        return f"text {row} of item {self._index}"

    def result(self, vectors: FloatArray) -> FloatArray:
        return vectors


class _Table:
    """A record batch or table, to which a column of vectors is appended: null where the text is."""

    def __init__(self, index: int, table: Any, texts: list[str | None], vector_column: str) -> None:
        self._index, self._table, self._vector_column = index, table, vector_column
        self._valid = np.array([text is not None for text in texts], dtype=np.bool_)
        self._texts = [text for text in texts if text is not None]
        self.nbytes = table.nbytes

    def take_texts(self) -> list[str]:
        taken, self._texts = self._texts, []
        return taken

    def name_of(self, row: int) -> str:
        return f"row {np.flatnonzero(self._valid)[row]} of item {self._index}"

    def result(self, vectors: FloatArray) -> Any:
        whole = np.zeros((len(self._valid), vectors.shape[1]), dtype=np.float32)
        whole[self._valid] = vectors
        column = to_column(whole, self._valid, "float32")
        return self._table.append_column(pa.field(self._vector_column, column.type), column)


class ItemReader:
    """Turns what a source yields into items; called once for each, in order.

    The text column is `column`, or chosen from the first table as `embed` chooses it.
    """

    def __init__(self, column: str | None, vector_column: str) -> None:
        self._column, self._given, self._vector_column = column, column is not None, vector_column
        self._index = -1

    def __call__(self, item: Any) -> Item:
        """Raises UsageError, which names the item, if it is neither a text nor has texts."""
        self._index += 1
        if isinstance(item, (pa.RecordBatch, pa.Table)):
            return self._table(item)
        if self._given:
            raise UsageError(f"item {self._index} is a {type(item).__name__}, which has no columns: leave column out")
        if isinstance(item, str):
            return _Text(self._index, item)
        try:
            return _Texts(self._index, read_texts(item))
        except UsageError as error:
            raise UsageError(f"item {self._index}: {error}") from None

    def _table(self, table: Any) -> _Table:
        where = f"item {self._index}"
        if self._vector_column in table.column_names:
            raise UsageError(f"{where} has a column {self._vector_column!r} already: choose another vector_column")
        if self._column is None:
            try:
                self._column, _ = text_column(table.schema)
            except InputError as error:
                raise UsageError(f"{where}: {error}") from None
        path = path_to(table.schema, self._column)
        if path is None:
            raise UsageError(f"{where} has no column {self._column!r}. {columns_of(table.schema)}")
        texts: list[str | None] = []
        for batch in table.to_batches() if isinstance(table, pa.Table) else [table]:
            try:
                texts += read_column(array_at(batch, path))
            except (UsageError, pa.ArrowException) as error:
                raise UsageError(f"{where}, column {self._column!r}: {error}") from None
        return _Table(self._index, table, texts, self._vector_column)
