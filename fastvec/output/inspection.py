"""Two looks at a finished output: `verify` checks every promise about it, `inspect` says what it is."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fastvec.errors import OutputError
from fastvec.output import arrow_file
from fastvec.output.reader import Output, read_output

# float32: a norm summed in float32 is off by up to D/2 · 2⁻²⁴, 1.2e-4 for 4096 dimensions; float16 rounds by 2⁻¹¹ more
_UNIT_TOLERANCE = {"float32": 2e-4, "float16": 1e-3}
_SAMPLED_BATCHES = 16
_SHOWN_INPUTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One promise: `detail` says what was found, or what is wrong."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    path: str
    checks: tuple[Check, ...]

    @property
    def return_code(self) -> int:
        return 0 if all(check.passed for check in self.checks) else 1

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.return_code == 0, **asdict(self)}

    def __str__(self) -> str:
        lines = [f"{'ok' if check.passed else 'FAILED':<8}{check.name:<12}{check.detail}" for check in self.checks]
        failed = sum(not check.passed for check in self.checks)
        verdict = f"{failed} of {len(lines)} checks failed" if failed else f"all {len(lines)} checks passed"
        return "\n".join(map(_printable, [*lines, f"{self.path}: {verdict}"]))


def verify(path: str | Path) -> Verification:
    """Check every promise about the output at `path`, in bounded memory. Never raises for a bad file: the report says.

    First the bytes, each of which is accounted for: the head is what the schema gives, each batch what its CRC32 says,
    and the rest the footer that the batches and counts give. Where they are damaged, values are not looked at.
    """
    try:
        output = read_output(Path(path))
        checks = [_check("file", None, f"a finished output in format {arrow_file.FORMAT}")]
        for stage in (_check_bytes, _check_columns, _check_values):
            if all(check.passed for check in checks):
                checks += stage(output)
    except (OutputError, OSError) as error:  # a bad sector, say
        checks = [_check("file", str(error), "")]
    return Verification(path=str(path), checks=tuple(checks))


def _check(name: str, problem: str | None, detail: str) -> Check:
    return Check(name=name, passed=problem is None, detail=problem or detail)


def _check_bytes(output: Output) -> Iterator[Check]:
    head, blocks = arrow_file.head(output.schema), output.blocks
    with output.path.open("rb") as file:
        problem = None if file.read(len(head)) == head else "not what the footer's copy of the schema gives"
    yield _check("head", problem, f"{len(head):,} bytes")
    damaged = arrow_file.first_damaged(output.path, blocks)
    if damaged is not None:
        sound = sum(block.rows for block in blocks[:damaged])
        yield _check("batches", f"batch {damaged}, from row {sound:,} on, is not what its CRC32 says", "")
        return
    yield _check("batches", None, f"{len(blocks):,}, as their CRC32 say")
    end = blocks[-1].end_offset if blocks else len(head)
    with output.path.open("rb") as file:
        file.seek(end)
        expected = _right_footer(output)
        problem = None if file.read(len(expected) + 1) == expected else "not what the batches and counts give"
    yield _check("footer", problem, f"{output.path.stat().st_size - end:,} bytes")


def _right_footer(output: Output) -> bytes:
    metadata = arrow_file.footer_metadata(output.schema, output.counts, output.blocks)
    try:
        return arrow_file.footer(output.path, output.schema, output.blocks, metadata)
    except (OutputError, pa.ArrowException):  # more batches were promised, or others
        return b""


def _check_columns(output: Output) -> Iterator[Check]:
    expected = {"row": pa.int64(), output.vector_column: output.vector_type}
    found = {name: [field.type for field in output.schema if field.name == name] for name in expected}
    wrong = [
        f"{name} is {' and '.join(map(str, found[name])) or 'missing'}, expected {type_}"
        for name, type_ in expected.items()
        if found[name] != [type_]
    ]
    yield _check("columns", "; ".join(wrong) or None, f"row, and {output.vector_column} of {output.dims:,} dimensions")
    if output.vector_dtype == "int8":
        ranges = np.zeros(0) if output.ranges is None else output.ranges
        sound = ranges.shape == (output.dims,) and np.all(np.isfinite(ranges) & (ranges > 0))
        yield _check("ranges", None if sound else "not a positive number for each dimension", "one for each dimension")


def _check_values(output: Output) -> Iterator[Check]:
    rows = nulls = 0
    problems: dict[str, str] = {}  # the first of each kind
    for batch in output.batches():
        for name, problem in _problems(output, batch, rows):
            problems.setdefault(name, problem)
        rows += batch.num_rows
        nulls += batch.column(output.vector_column).null_count
    counted = output.counted_nulls
    yield _check("rows", None if rows == output.rows else f"{rows:,}, promised are {output.rows:,}", f"{rows:,}")
    yield _check("order", problems.get("order"), "numbered from 0, without a gap")
    yield _check("inputs", _inputs_problem(output), f"{len(output.inputs):,}, with these rows in all")
    yield _check(
        "nulls", None if nulls == counted else f"{nulls:,}, counted were {counted:,}", f"{nulls:,}, as counted"
    )
    yield _check("finite", problems.get("finite"), "all values")
    if output.normalize and output.vector_dtype in _UNIT_TOLERANCE:
        yield _check("unit length", problems.get("unit length"), f"to {_UNIT_TOLERANCE[output.vector_dtype]}")


def _problems(output: Output, batch: pa.RecordBatch, first_row: int) -> Iterator[tuple[str, str]]:
    numbers = batch.column("row").to_numpy(zero_copy_only=False)
    for i in np.flatnonzero(numbers != np.arange(first_row, first_row + len(numbers)))[:1]:
        yield "order", f"row {first_row + i:,} is numbered {numbers[i]}"
    vectors, valid = output.vectors(batch)
    finite = np.isfinite(vectors).all(axis=1)
    for i in np.flatnonzero(valid & ~finite)[:1]:
        yield "finite", f"row {first_row + i:,} has a value that is not a finite number"
    if output.normalize and output.vector_dtype in _UNIT_TOLERANCE:
        norms = output.norms(vectors)
        for i in np.flatnonzero(valid & finite & (np.abs(norms - 1) > _UNIT_TOLERANCE[output.vector_dtype]))[:1]:
            yield "unit length", f"row {first_row + i:,} has length {norms[i]:.6f}"


def _inputs_problem(output: Output) -> str | None:
    first_row = 0
    for file in output.inputs:
        if file["first_row"] != first_row:
            return f"{file['uri']} begins at row {file['first_row']:,}, expected {first_row:,}"
        first_row += file["rows"]
    return None if first_row == output.rows else f"they have {first_row:,} rows, the output {output.rows:,}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Norms:
    """Lengths of `vectors` of the vectors: of all, or of batches spread over the file."""

    vectors: int
    minimum: float
    mean: float
    maximum: float

    def __str__(self) -> str:
        return f"{self.minimum:.4f} to {self.maximum:.4f}, mean {self.mean:.4f}, of {self.vectors:,} vectors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What an output is. `norms` is None for binary vectors, and where no row has a vector."""

    path: str
    size_bytes: int
    version: str
    model: str
    revision: str
    weights: str
    bidirectional: bool
    eos: bool | None  # whether EOS ends every sequence; None: as tokenizer.json says
    pooling: str
    pooled_tokens: str
    instruction: str
    rows: int
    nulls: int  # rows without a vector: no text, or an error
    dims: int
    vector_dtype: str
    vector_column: str
    normalize: bool
    norms: Norms | None
    kept: dict[str, str]  # name and type
    inputs: list[dict[str, Any]]
    counts: dict[str, int]

    @property
    def return_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        files = [f"{file['uri']} ({file['rows']:,} rows)" for file in self.inputs[:_SHOWN_INPUTS]]
        if len(self.inputs) > _SHOWN_INPUTS:
            files.append(f"and {len(self.inputs) - _SHOWN_INPUTS:,} more")
        normalized = ", normalized" if self.normalize else ""
        lines = {
            "file": f"{self.path}, {self.size_bytes:,} bytes, by fastvec {self.version}",
            "model": self.model,
            "revision": self.revision or "none",
            "weights": self.weights[:12],
            "attention": "bidirectional" if self.bidirectional else "causal",
            **({} if self.eos is None else {"eos": "ends every sequence" if self.eos else "left out"}),
            "pooling": f"{self.pooling}, {self.pooled_tokens} tokens",
            "instruction": self.instruction or "none",
            "rows": f"{self.rows:,}, {self.nulls:,} of them without a vector",
            "vectors": f"{self.vector_column}, {self.dims:,} dimensions, {self.vector_dtype}{normalized}",
            "norms": "none" if self.norms is None else str(self.norms),
            "kept": ", ".join(f"{name} ({type_})" for name, type_ in self.kept.items()) or "none",
            "inputs": ", ".join(files),
            "counts": ", ".join(f"{count:,} {name}" for name, count in self.counts.items()),
        }
        return "\n".join(f"{name:<13}{_printable(text)}" for name, text in lines.items())


def inspect(path: str | Path) -> Summary:
    """Say what the output at `path` is, from its metadata and the norms of some batches.

    Raises OutputError for a file that is not a finished output.
    """
    output = read_output(Path(path))
    for check in _check_columns(output):
        if not check.passed:
            raise OutputError(f"{path} is not what its metadata say: {check.name}: {check.detail}")
    own, names = output.own, output.schema.names
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
        rows=output.rows,
        nulls=output.counted_nulls,
        dims=output.dims,
        vector_dtype=output.vector_dtype,
        vector_column=output.vector_column,
        normalize=output.normalize,
        norms=_sampled_norms(output),
        kept={name: str(output.schema.field(name).type) for name in names if name not in ("row", output.vector_column)},
        inputs=output.inputs,
        counts=output.counts,
    )


def _sampled_norms(output: Output) -> Norms | None:
    if output.vector_dtype == "binary":
        return None
    stride = max(len(output.blocks) // _SAMPLED_BATCHES, 1)
    found = [output.norms(vectors[valid]) for vectors, valid in map(output.vectors, output.batches(stride=stride))]
    norms = np.concatenate([np.zeros(0), *found])
    if len(norms) == 0:
        return None
    return Norms(vectors=len(norms), minimum=float(norms.min()), mean=float(norms.mean()), maximum=float(norms.max()))


def _printable(text: str) -> str:
    """`text` on one line, without the escape sequences that a terminal would obey."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
