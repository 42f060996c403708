"""`fastvec inspect`: a one-screen summary of a finished output."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastvec.errors import OutputError, printable
from fastvec.output.reader import Output, read_output
from fastvec.output.verify import check_columns

_SAMPLED_BATCHES = 16
_SHOWN_INPUTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Norms:
    """Statistics of the norms of `vectors` vectors: of all, or of batches sampled evenly over the file."""

    vectors: int
    minimum: float
    mean: float
    maximum: float

    def __str__(self) -> str:
        return f"{self.minimum:.4f} to {self.maximum:.4f}, mean {self.mean:.4f}, over {self.vectors:,} vectors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The summary of an output. `norms` is None for binary vectors, and if no sampled row has a vector."""

    path: str
    size_bytes: int
    version: str
    model: str
    revision: str
    weights: str
    bidirectional: bool
    eos: bool | None  # whether EOS ends every sequence; None: tokenizer.json decides
    pooling: str
    pooled_tokens: str
    instruction: str
    texts: str  # what of a row is embedded; empty if an earlier version did not record it
    rows: int
    input_rows: int
    passages: bool  # whether the rows are passages of those of the inputs
    nulls: int  # rows without a vector: null text or row error
    dims: int
    vector_dtype: str
    vector_columns: tuple[str, ...]
    normalize: bool
    norms: Norms | None
    kept: dict[str, str]  # column name to type
    inputs: list[dict[str, Any]]
    counts: dict[str, int]
    shards: int = 0  # of a folder; the norms are those of the first

    @property
    def return_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        files = [f"{file['uri']} ({file['rows']:,} rows)" for file in self.inputs[:_SHOWN_INPUTS]]
        if len(self.inputs) > _SHOWN_INPUTS:
            files.append(f"and {len(self.inputs) - _SHOWN_INPUTS:,} more")
        normalized, vectors = ", normalized" if self.normalize else "", " and ".join(self.vector_columns)
        passages = f" passages of {self.input_rows:,} rows" if self.passages else ""
        shards = f"{self.shards:,} shards, " if self.shards else ""
        missing = "of them without a vector" if len(self.vector_columns) == 1 else "vectors missing"
        lines = {
            "file": f"{self.path}, {shards}{self.size_bytes:,} bytes, by fastvec {self.version}",
            "model": self.model,
            "revision": self.revision or "none",
            "weights": self.weights[:12],
            "attention": "bidirectional" if self.bidirectional else "causal",
            **({} if self.eos is None else {"eos": "appended to every sequence" if self.eos else "not appended"}),
            "pooling": f"{self.pooling}, {self.pooled_tokens} tokens",
            "instruction": self.instruction or "none",
            **({"texts": self.texts} if self.texts else {}),
            "rows": f"{self.rows:,}{passages}, {self.nulls:,} {missing}",
            "vectors": f"{vectors}, {self.dims:,} dimensions, {self.vector_dtype}{normalized}",
            "norms": "none" if self.norms is None else str(self.norms),
            "kept": ", ".join(f"{name} ({type_})" for name, type_ in self.kept.items()) or "none",
            "inputs": ", ".join(files),
            "counts": ", ".join(f"{count:,} {name}" for name, count in self.counts.items()),
        }
        return "\n".join(f"{name:<13}{printable(text)}" for name, text in lines.items())


def inspect(path: str | Path) -> Summary:
    """Summarize the output at `path` from its metadata and the norms of sampled batches.

    Raises OutputError if the file is not a finished output, or if its columns do not match its metadata.
    """
    output = read_output(Path(path))
    for check in check_columns(output):
        if not check.passed:
            raise OutputError(f"{path} does not match its metadata: {check.name}: {check.detail}")
    own = output.own
    return Summary(
        path=str(path),
        size_bytes=output.path.stat().st_size,
        version=own.get("version", ""),
        model=own.get("model", ""),
        revision=own.get("revision", ""),
        weights=own.get("weights", ""),
        bidirectional=own.get("bidirectional") == "true",
        eos={"true": True, "false": False}.get(own.get("eos", "")),
        pooling=own.get("pooling", ""),
        pooled_tokens=own.get("pooled_tokens", ""),
        instruction=own.get("instruction", ""),
        texts=_texts(own),
        rows=output.rows,
        input_rows=output.input_rows,
        passages=output.has_passages,
        nulls=output.vectors_missing,
        dims=output.dims,
        vector_dtype=output.vector_dtype,
        vector_columns=output.vector_columns,
        normalize=output.normalize,
        norms=_sampled_norms(output),
        kept={name: str(output.schema.field(name).type) for name in output.kept_columns},
        inputs=output.inputs,
        counts=output.counts,
    )


def _texts(own: Mapping[str, str]) -> str:
    if "template" in own:
        texts = f"template {json.dumps(own['template'], ensure_ascii=False)}"
    else:
        columns = own.get("column", "")
        texts = f"column {columns}" if columns else ""
        if "vector_columns" in own:
            texts = f"columns {' and '.join(json.loads(columns))}"
    return texts + (f", instructions of column {own['instruction_column']}" if "instruction_column" in own else "")


def _sampled_norms(output: Output) -> Norms | None:
    if output.vector_dtype == "binary":
        return None
    stride = max(output.batch_count // _SAMPLED_BATCHES, 1)
    found = [
        output.norms(vectors[valid])
        for batch in output.batches(stride=stride)
        for vectors, valid in (output.vectors(batch, name) for name in output.vector_columns)
    ]
    norms = np.concatenate([np.zeros(0), *found])
    if len(norms) == 0:
        return None
    return Norms(vectors=len(norms), minimum=float(norms.min()), mean=float(norms.mean()), maximum=float(norms.max()))
