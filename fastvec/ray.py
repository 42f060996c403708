"""A class for `map_batches` of Ray Data, which appends a column of vectors to the batches of a dataset.

Ray makes an instance in each of its actors, which so loads the model once. The class needs nothing of Ray, and does not
import it.

Shapes: n rows of a batch, D dimensions of a vector.
"""

from typing import Any

import pyarrow as pa

from fastvec.encoder import Encoder
from fastvec.errors import UsageError


class Embedder:
    """Appends the vectors of a text column to each batch, in any of Ray's batch formats.

    On a CPU it computes with as many threads as the actor has CPUs (`num_cpus`): Ray sets OMP_NUM_THREADS.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        column: str = "text",
        vector_column: str = "embedding",
        instruction: str | None = None,
        prompt_name: str | None = None,
        **options: Any,
    ) -> None:
        """Load the model.

        Args:
            model: A folder that each node can read, or a hub id; None is the bundled model.
            column: The text column, or a field of a struct with its dotted name. It has a default and is not chosen
                from a batch, because two actors, with different batches, might choose two columns.
            vector_column: The name of the appended column.
            instruction: An instruction before every text.
            prompt_name: The name of one of the checkpoint's prompts, to put it before every text.
            options: Those of `Encoder.from_pretrained`, such as `dims`.

        Raises:
            ModelError: The checkpoint cannot be used.
            UsageError: An option is not supported.
        """
        self._encoder = Encoder.from_pretrained(model, **options)
        self._encoder.tokenizer(instruction, prompt_name)  # raises before the first batch
        self._column, self._vector_column = column, vector_column
        self._instruction, self._prompt_name = instruction, prompt_name
        self._characters = 0

    def __call__(self, batch: Any) -> Any:
        """Return the batch of n rows with a column of n lists of D float32, null where the text is null.

        `batch` is a pyarrow table, a pandas DataFrame or a dictionary of NumPy arrays, and so is the result. The
        appended column is Arrow's in each of them (in a DataFrame, of `ArrowDtype`), as Ray stores it.

        Raises:
            UsageError: The batch has no such text column, or has a column with the name of the vectors'.
            ModelError: A text has no finite vector.
        """
        texts = self._texts(batch)
        self._characters += texts.nbytes
        self._encoder.measure_for(self._characters)  # once the actor's work turns out to be long
        (result,) = self._encoder.stream(
            iter([texts]),
            column=self._column,
            vector_column=self._vector_column,
            instruction=self._instruction,
            prompt_name=self._prompt_name,
        )
        return _with_column(batch, self._vector_column, result[self._vector_column])

    def _texts(self, batch: Any) -> pa.Table:
        """Return a table of the column that is, or contains, the texts."""
        names = list(batch.column_names if isinstance(batch, pa.Table) else batch)
        if self._vector_column in names:
            raise UsageError(f"the batch has a column {self._vector_column!r} already: choose another vector_column")
        name = max((name for name in names if f"{self._column}.".startswith(f"{name}.")), key=len, default=None)
        if name is None:
            raise UsageError(f"the batch has no column {self._column!r}, only {', '.join(names)}: set column")
        if isinstance(batch, pa.Table):
            return batch.select([name])
        try:
            return pa.table({name: pa.array(batch[name], from_pandas=True)})  # from_pandas: NaN is null
        except pa.ArrowException:
            raise UsageError(
                f"column {name!r} has values that are not strings: give the column with the texts"
            ) from None


def _with_column(batch: Any, name: str, column: pa.ChunkedArray) -> Any:
    if isinstance(batch, pa.Table):
        return batch.append_column(name, column)
    if isinstance(batch, dict):
        return batch | {name: column}
    import pandas as pd

    return batch.assign(**{name: pd.Series(pd.arrays.ArrowExtensionArray(column), index=batch.index)})
