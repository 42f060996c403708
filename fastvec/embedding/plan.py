"""Plans an embedding job before the model is loaded: its rows, its output's schema, its fingerprint.

Two runs with the same fingerprint produce the same file, up to rounding. The fingerprint contains everything that can
change the file, and nothing that cannot (the number of errors allowed, threads, prefetch). Batch size, device and
library versions are left out, because they only change how sums round.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from fastvec import __version__
from fastvec.corpus.copies import LocalCopy
from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import Corpus
from fastvec.embedding.options import EmbedOptions
from fastvec.embedding.remote_output import RemoteOutput
from fastvec.errors import OutputError, UsageError
from fastvec.fingerprint import Json, fingerprint_differences
from fastvec.output import arrow_file, parquet_file
from fastvec.output.earlier import HASH_BYTES, HASH_TYPE, EarlierOutput, EarlierVectors
from fastvec.output.vector_column import FloatArray, column_type, ranges_to_json
from fastvec.settings import EncoderSettings
from fastvec.stores.address import Address, is_remote
from fastvec.system.durable_files import translated_os_errors
from fastvec.texts.batching import BYTES_A_TOKEN
from fastvec.texts.tokenizer import is_utf8

BITS = {"float32": 32, "float16": 16, "int8": 8, "binary": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedPlan:
    """One job: which rows are embedded, with which encoder settings, into which file."""

    corpus: Corpus
    output: Path  # the file that is written
    remote: RemoteOutput | None  # where it is uploaded
    settings: EncoderSettings
    options: EmbedOptions
    earlier: EarlierOutput | None  # whose vectors are reused

    @property
    def output_name(self) -> str:
        """The output's path or address."""
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
        }

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
    def output_bytes(self) -> int:
        """The size in bytes of vectors, hashes and row numbers, without kept columns, if each row is one passage."""
        vector = self.settings.dims * BITS[self.options.vector_dtype] // 8 + HASH_BYTES * self.options.has_hashes
        return self.corpus.rows * (len(self.vector_columns) * vector + 8)

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
) -> EmbedPlan:
    """Open every input and plan the job.

    Raises UsageError, InputError or OutputError if the job cannot work, before anything is written; RefusedError if the
    vectors to reuse were made with other settings.
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
        output=destination if isinstance(destination, Path) else destination.address,
        output_columns=options.output_columns(given),
    )
    if is_remote(options.reuse):
        raise UsageError("--reuse takes a local file, and was given an address: copy the earlier output first")
    earlier = None if options.reuse is None else EarlierOutput(Path(options.reuse))
    if earlier is not None and settings.auto_dtype:
        settings = settings.in_dtype_of(earlier.output.own.get("dtype"))
    plan = EmbedPlan(
        corpus=corpus,
        output=destination if isinstance(destination, Path) else destination.path,
        remote=None if isinstance(destination, Path) else destination,
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


def destination_of(output: str | Path) -> Path | RemoteOutput:
    """Return the path of the output, or what it is in a store.

    Raises OutputError if no output can be written there, and UsageError for an address with credentials.
    """
    if is_remote(output):
        address = Address.parse(str(output))
        if str(output).endswith("/"):
            raise OutputError(f"{output} is a folder: name a file in it, such as {address / 'vecs.arrow'}")
        _require_output_name(address.name, str(address))
        return RemoteOutput(address)
    path = Path(output)
    if not is_utf8(str(path)):
        raise OutputError(f"{str(path)!r} is not UTF-8, which Arrow requires of file names: choose another -o")
    with translated_os_errors(path):
        is_folder, has_place = path.is_dir() or str(output).endswith("/"), path.parent.is_dir()
    if is_folder:
        raise OutputError(f"{path} is a folder: name a file in it, such as {path / 'vecs.arrow'}")
    _require_output_name(path.name, str(output))
    if not has_place:
        raise OutputError(f"{path.parent} is not a folder: make it first, or choose another -o")
    return path


@contextmanager
def written_to(destination: Path | RemoteOutput) -> Iterator[Path]:
    """Yield the path of the local file that is written. For a store, its folder is deleted if it is empty."""
    if isinstance(destination, Path):
        yield destination
        return
    try:
        yield destination.path
    finally:
        destination.remove_empty_folder()


def _require_output_name(name: str, output: str) -> None:
    path = Path(name)
    if path.suffix in (".npy", ".lance"):
        arrow = Path(output).with_suffix(".arrow")
        raise OutputError(
            f"{output} cannot be embedded to: embed to {arrow}, then run fastvec convert {arrow} {output}"
        )
    if path.suffix not in (".arrow", ".parquet"):
        problem, name = "ends in neither .arrow nor .parquet", path.stem
        if path.name in (".arrow", ".parquet"):
            problem, name = f"has no name before {path.name}", "vecs"
        raise OutputError(f"{output} {problem}: the output is an Arrow IPC or Parquet file, name it {name}.arrow")


def _flag(value: bool) -> str:
    return "true" if value else "false"
