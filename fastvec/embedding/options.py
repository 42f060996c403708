"""The options of an embedding job, checked as far as they can be without its inputs and its model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from fastvec.errors import UsageError
from fastvec.fingerprint import Json
from fastvec.output.reader import CHUNK_TEXT, PASSAGE_COLUMNS
from fastvec.output.vector_column import VECTOR_DTYPES, VectorDtype
from fastvec.texts.tokenizer import is_utf8

HASH_COLUMN = "hash"
LONG = ("truncate", "mean", "chunks")


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedOptions:
    """What is embedded of each row, and how it is written. Raises UsageError for values that contradict each other.

    Attributes:
        column: The text column, or several, each of which gets its vectors; None chooses one by type and name.
        template: What the text is put together by, instead of a column.
        keep: The columns to copy; None copies all.
        instruction, prompt_name: An instruction before every text, or the name of a prompt of the checkpoint.
        instruction_column: A column with an instruction for each row.
        vector_dtype, vector_column: How vectors are stored, and the name of their column.
        on_error, max_errors: Whether a text without a vector becomes a null or stops the job, and after how many.
        limit: Only the first rows, over all inputs.
        hash: Whether to add a column with the hash of each text.
        reuse: A finished output with hashes, whose vectors are copied for the texts that it has.
        long: What becomes of a text that is too long for a sequence: `truncate` cuts it, `mean` gives it the mean of
            its passages' vectors, `chunks` makes a row of each passage.
        overlap: The tokens that a passage shares with the next one.
        chunk_tokens: The tokens of a passage, with `chunks`; None: as many as fit into a sequence.
        chunk_text: Whether to add a column with the text of each passage, with `chunks`.
        verify: Whether what was written is read back from the disk before the output is published; None: the first
            64 MiB are, and the rest if that takes at most 1 % of the job's time. Does not identify a job.
        late: Whether to encode as much of a text at once as fits into a sequence, and pool each passage from that,
            instead of encoding each passage alone ("late chunking", arXiv 2409.04701).
    """

    column: str | Sequence[str] | None = None
    template: str | None = None
    keep: Sequence[str] | None = ()
    instruction: str | None = None
    instruction_column: str | None = None
    prompt_name: str | None = None
    vector_dtype: VectorDtype = "float32"
    vector_column: str = "embedding"
    on_error: str = "null"
    max_errors: int | None = None
    limit: int | None = None
    verify: bool | None = None
    hash: bool = False
    reuse: str | Path | None = None
    long: str = "truncate"
    overlap: int = 0
    chunk_tokens: int | None = None
    late: bool = False
    chunk_text: bool = False

    def __post_init__(self) -> None:
        if self.vector_dtype not in VECTOR_DTYPES:
            raise UsageError(f"vector dtype {self.vector_dtype!r} is not known: choose {', '.join(VECTOR_DTYPES)}")
        if self.on_error not in ("null", "fail"):
            raise UsageError(f"on-error {self.on_error!r} is not known: choose null or fail")
        for name, number in {"limit": self.limit, "max-errors": self.max_errors}.items():
            if number is not None and number < 0:
                raise UsageError(f"{name} {number} is out of range: the minimum is 0")
        passages = [name for name, _ in (*PASSAGE_COLUMNS, CHUNK_TEXT)]
        if self.vector_column in ("row", HASH_COLUMN, *passages) or not is_utf8(self.vector_column):
            problem = "the name of another output column" if is_utf8(self.vector_column) else "not valid UTF-8"
            raise UsageError(f"vector column {self.vector_column!r} is {problem}: choose another name")
        if self.instruction_column is not None and (self.instruction is not None or self.prompt_name is not None):
            raise UsageError("a column of instructions was given beside an instruction or prompt for all: choose one")
        self._check_passages()

    def _check_passages(self) -> None:
        if self.long not in LONG:
            raise UsageError(f"long {self.long!r} is not known: choose {', '.join(LONG)}")
        if self.overlap and self.long == "truncate":
            raise UsageError("--overlap needs passages: choose --long mean or chunks")
        if self.chunk_tokens is not None and not self.makes_passages:
            raise UsageError("--chunk-tokens needs --long chunks")
        if self.chunk_text and not self.makes_passages:
            raise UsageError("--chunk-text needs --long chunks")
        if self.late and self.chunk_tokens is None:
            raise UsageError("--late needs --long chunks and --chunk-tokens: passages that are a part of a sequence")
        if self.late and (self.has_hashes or self.instruction_column is not None):
            raise UsageError("--late cannot be combined with --hash, --reuse or --instruction-column: leave one out")
        several = self.column is not None and not isinstance(self.column, str) and len(self.column) > 1
        if self.makes_passages and several:
            raise UsageError(
                "--long chunks makes a row of each passage of one text: give one --column, or a --template"
            )

    @property
    def makes_passages(self) -> bool:
        """Whether a row of the output is a passage."""
        return self.long == "chunks"

    @property
    def passage_columns(self) -> tuple[tuple[str, pa.DataType], ...]:
        """The columns that say what passage a row is, and their types, if rows are passages."""
        if not self.makes_passages:
            return ()
        return (*PASSAGE_COLUMNS, CHUNK_TEXT) if self.chunk_text else PASSAGE_COLUMNS

    @property
    def passages(self) -> list[Json] | None:
        """What identifies how long texts are split; None if they are truncated."""
        return None if self.long == "truncate" else [self.long, self.overlap, self.chunk_tokens, self.late]

    @property
    def has_hashes(self) -> bool:
        """Whether the output has hashes: one that reuses another can be reused itself."""
        return self.hash or self.reuse is not None

    def output_columns(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the output's own columns for these text columns."""
        return (
            "row",
            *(name for name, _ in self.passage_columns),
            *self.vector_columns(texts),
            *self.hash_columns(texts),
        )

    def vector_columns(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the vector columns, one for each text column."""
        return _named(self.vector_column, texts)

    def hash_columns(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the columns of hashes, one for each text column, if there are any."""
        return _named(HASH_COLUMN, texts) if self.has_hashes else ()


def _named(name: str, texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}_{text}" for text in texts) if len(texts) > 1 else (name,)
