"""Plans an embedding job before the model is loaded: its rows, its output's schema, its fingerprint.

Two runs with the same fingerprint produce the same file, up to rounding. The fingerprint contains everything that can
change the file, and nothing that cannot (the number of errors allowed, threads, prefetch). Batch size, device and
library versions are left out, because they only change how sums round.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from fastvec import __version__
from fastvec.corpus.copies import LocalCopy
from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import Corpus
from fastvec.corpus.shard_ranges import default_shard_rows
from fastvec.embedding.destination import destination_of
from fastvec.embedding.options import EmbedOptions
from fastvec.embedding.remote_output import RemoteOutput
from fastvec.errors import UsageError
from fastvec.fingerprint import Json, fingerprint_differences
from fastvec.output import arrow_file, parquet_file
from fastvec.output.earlier import HASH_BYTES, HASH_TYPE, EarlierOutput, EarlierVectors
from fastvec.output.reader import SHARD
from fastvec.output.vector_column import FloatArray, column_type, ranges_to_json
from fastvec.settings import EncoderSettings
from fastvec.shards.folder import Folder
from fastvec.stores.address import is_remote
from fastvec.system.stop_signals import require_no_signal
from fastvec.texts.batching import BYTES_A_TOKEN

BITS = {"float32": 32, "float16": 16, "int8": 8, "binary": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedPlan:
    """One job: which rows are embedded, with which encoder settings, into which file or folder.

    If `shard` is not None, only these rows are, as a part of the job of which the other shards are the rest.
    """

    corpus: Corpus
    output: Path  # the local file or folder that is written
    remote: RemoteOutput | None  # where the file is uploaded
    folder: Folder | None  # of shards
    settings: EncoderSettings
    options: EmbedOptions
    earlier: EarlierOutput | None  # whose vectors are reused
    shard: range | None = None

    @property
    def output_name(self) -> str:
        """The output's path or address."""
        if self.folder is not None:
            return self.folder.location if self.shard is None else f"{self.folder.location}/{self.output.name}"
        return str(self.output if self.remote is None else self.remote.address)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The fields that identify the job."""
        corpus = self.corpus
        return {
            "format": arrow_file.FORMAT,
            "inputs": [[file.uri, file.size, file.version] for file in corpus.files],
            **self._texts,
            "keep": corpus.kept_schema.names,
            "rows": corpus.rows,
            **self.vectors_fingerprint,
            "vector_column": self.options.vector_column,
            **({"chunk_text": True} if self.options.chunk_text else {}),
            **({"hash": True} if self.options.has_hashes else {}),
            **({} if self.earlier is None else {"reuse": self.earlier.version}),
            **({} if self.shard is None else {SHARD: [self.shard.start, self.shard.stop]}),
        }

    @property
    def rows(self) -> range:
        """The rows of the corpus that are embedded."""
        return range(self.corpus.rows) if self.shard is None else self.shard

    @property
    def shard_rows(self) -> int:
        """The default number of rows of a shard."""
        return default_shard_rows(self.corpus.rows, self.row_bytes)

    @property
    def vectors_fingerprint(self) -> dict[str, Any]:
        """The fields that two outputs must share for the vector of a text to be the same in both."""
        settings = self.settings.fingerprint(self.options.instruction, self.options.prompt_name)
        return {**settings, "vector_dtype": self.options.vector_dtype, "passages": self.options.passages}

    def as_begun(self, fingerprint: Mapping[str, Json]) -> Self:
        """Return the plan of the run with this fingerprint, if the two differ at most in the computation's dtype."""
        plan = replace(self, settings=self.settings.in_dtype_of(fingerprint.get("dtype")))
        return self if fingerprint_differences(fingerprint, plan.fingerprint) else plan

    @property
    def _texts(self) -> dict[str, Json]:
        """What is embedded: a column, several columns, or a template, and with which instructions."""
        columns, instructions = self.corpus.columns, self.corpus.instruction_column
        texts: dict[str, Json] = {"column": columns[0] if len(columns) == 1 else columns}
        if not self.corpus.templates[0].is_column:
            texts = {"template": columns[0]}
        return texts if instructions is None else {**texts, "instruction_column": instructions}

    def earlier_vectors(self) -> EarlierVectors | None:
        """Return the vectors to reuse, if any. Raises OutputError if the output that has them is damaged."""
        return None if self.earlier is None else EarlierVectors(self.earlier)

    @property
    def vector_columns(self) -> tuple[str, ...]:
        """The names of the output's vector columns, one for each text column."""
        return self.options.vector_columns(self.corpus.columns)

    @property
    def row_bytes(self) -> int:
        """The size in bytes of a row's vectors, hashes and number, without kept columns, if it is one passage."""
        vector = self.settings.dims * BITS[self.options.vector_dtype] // 8 + HASH_BYTES * self.options.has_hashes
        return len(self.vector_columns) * vector + 8

    @property
    def output_bytes(self) -> int:
        """The same of all rows."""
        return len(self.rows) * self.row_bytes

    @property
    def text_bytes(self) -> int:
        """An estimate of the bytes of text to encode: those of the files, or what `max_length` leaves of each row."""
        whole = sum(file.size for file in self.corpus.files)
        if self.options.long != "truncate":
            return whole
        most = self.corpus.rows * len(self.vector_columns) * self.settings.max_length * BYTES_A_TOKEN
        return min(whole, most)

    def schema(self, ranges: FloatArray | None = None) -> pa.Schema:
        """Return the output's columns and metadata; `ranges` [D] are those of int8 vectors."""
        vector = column_type(self.settings.dims, self.options.vector_dtype)
        fields = [
            *self.corpus.kept_schema,
            pa.field("row", pa.int64(), nullable=False),
            *(pa.field(name, type) for name, type in self.options.passage_columns),
            *(pa.field(name, vector) for name in self.vector_columns),
            *(pa.field(name, HASH_TYPE) for name in self.options.hash_columns(self.corpus.columns)),
        ]
        return pa.schema(fields, metadata=self._metadata(ranges))

    def _metadata(self, ranges: FloatArray | None) -> Mapping[str, bytes]:
        settings, checkpoint, options = self.settings, self.settings.checkpoint, self.options
        files = [{"uri": file.uri, "first_row": file.first_row, "rows": file.rows} for file in self.corpus.files]
        metadata = {
            "version": __version__,
            "model": checkpoint.name,
            "revision": checkpoint.revision or "",
            "weights": checkpoint.weights_hash,
            "bidirectional": _flag(settings.bidirectional),
            "pooling": settings.pooling,
            "pooled_tokens": settings.pooled_tokens,
            "instruction": settings.prefix(options.instruction, options.prompt_name),
            "normalize": _flag(settings.normalize),
            "dims": str(settings.dims),
            "dtype": settings.arithmetic,
            "vector_dtype": options.vector_dtype,
            "vector_column": options.vector_column,
            **{key: text if isinstance(text, str) else json.dumps(text) for key, text in self._texts.items()},
            "inputs": json.dumps(files),
        }
        if options.long != "truncate":
            metadata |= {"long": options.long, "overlap": str(options.overlap), "late": _flag(options.late)}
        if self.options.has_hashes:
            metadata["hash_columns"] = json.dumps(self.options.hash_columns(self.corpus.columns))
        if len(self.vector_columns) > 1:
            metadata["vector_columns"] = json.dumps(self.vector_columns)
        if checkpoint.special_tokens.eos is not None:
            metadata["eos"] = _flag(checkpoint.special_tokens.eos)
        if self.shard is not None:
            metadata[SHARD] = json.dumps([self.shard.start, self.shard.stop])
        if ranges is not None:
            metadata["ranges"] = ranges_to_json(ranges)
        # bytes of a file name or an argument that are not UTF-8 are written as escapes, e.g. \udcff
        return {f"fastvec.{key}": value.encode("utf-8", "backslashreplace") for key, value in metadata.items()}


def plan_embed(
    inputs: Sequence[str | Path | LocalCopy] | str | Path,
    output: str | Path,
    *,
    settings: EncoderSettings,
    options: EmbedOptions,
    stop_signal: Callable[[], int | None] = lambda: None,
) -> EmbedPlan:
    """Open every input and plan the job.

    Raises UsageError, InputError or OutputError if the job cannot work, before anything is written; RefusedError if the
    vectors to reuse were made with other settings; InterruptedRunError once `stop_signal` returns a signal.
    """
    destination = destination_of(output)
    given = () if options.column is None or isinstance(options.column, str) else options.column
    corpus = open_corpus(
        inputs,
        column=options.column,
        template=options.template,
        instruction_column=options.instruction_column,
        keep=options.keep,
        limit=options.limit,
        output=destination.place,
        output_columns=options.output_columns(given),
        check=partial(require_no_signal, stop_signal, "rows were counted: nothing was written"),
    )
    if is_remote(options.reuse):
        raise UsageError("--reuse takes a local file, and was given an address: copy the earlier output first")
    earlier = None if options.reuse is None else EarlierOutput(Path(options.reuse))
    if earlier is not None and settings.auto_dtype:
        settings = settings.in_dtype_of(earlier.output.own.get("dtype"))
    plan = EmbedPlan(
        corpus=corpus,
        output=destination.written,
        remote=destination.remote,
        folder=destination.folder,
        settings=settings,
        options=options,
        earlier=earlier,
    )
    if earlier is not None:
        earlier.require_settings(plan.vectors_fingerprint)
    if options.late and settings.pooling not in ("mean", "weighted_mean"):
        raise UsageError(f"--late needs mean pooling, and this model has {settings.pooling}: leave it out")
    schema = plan.schema()  # raises UsageError for dims that no vector column can have, before the model is loaded
    if plan.output.suffix == ".parquet":
        parquet_file.require_storable(schema)
    return plan


def _flag(value: bool) -> str:
    return "true" if value else "false"
