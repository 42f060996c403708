"""`fastvec verify`: checks every promise about a finished output."""

import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fastvec.errors import OutputError, printable
from fastvec.output import arrow_file
from fastvec.output.ownership import FIRST_LINE_BYTES, errors_path, is_row_error
from fastvec.output.reader import PASSAGE_COLUMNS, Array, Output, read_output
from fastvec.system import blocks
from fastvec.system.durable_files import translated_os_errors

# float32: the error of a norm summed in float32 is up to D/2 · 2⁻²⁴, 1.2e-4 for D = 4096; float16 rounding adds 2⁻¹¹
_UNIT_TOLERANCE = {"float32": 2e-4, "float16": 1e-3}

_READ_BYTES = 1 << 20
REMEDY = "restore a copy, or embed again with --overwrite"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """The check of one promise. `detail` says what was found, or what is wrong."""

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
        lines = [f"{'ok' if check.passed else 'FAILED':<8}{check.name:<11} {check.detail}" for check in self.checks]
        failed = sum(not check.passed for check in self.checks)
        is_file = Path(self.path).suffix in (".arrow", ".parquet") and self.checks[0].passed  # and not no output at all
        remedy = f"; {REMEDY}" if is_file else ""
        verdict = f"{failed} of {len(lines)} checks failed{remedy}" if failed else f"all {len(lines)} checks passed"
        return "\n".join(map(printable, [*lines, f"{self.path}: {verdict}"]))


def verify(path: str | Path) -> Verification:
    """Check every promise about the output at `path`, in bounded memory.

    A damaged file raises no error; it gives a failed check. The bytes are checked first. In an Arrow file, these are
    all: the head must be the encoded schema, each batch must match its CRC32, and the rest must be the footer that
    follows from the batches and counts. In a Parquet file, each row group and the footer must match their CRC32. The
    columns' types are checked if the bytes pass, and the values if both do. Last is the file of row errors beside the
    output; those of a shard are in a file of its folder.
    """
    checks: list[Check] = []
    try:
        output = read_output(Path(path))
        checks.append(check("file", None, f"a finished output in format {arrow_file.FORMAT}"))
        for stage in (check_bytes, check_columns, _check_values):
            if all(check.passed for check in checks):
                checks += stage(output)
        if output.shard is None:
            checks += _check_errors(output, errors_path(output.path))
    except (OutputError, OSError) as error:  # OSError: e.g. a bad sector
        checks = [check("file", str(error), "")]
    return Verification(path=str(path), checks=tuple(checks))


def open_intact(path: Path) -> Output:
    """Open the finished output at `path`, and check its bytes: a copy of damaged vectors would look intact.

    Raises OutputError if it is not a finished output, is damaged, or cannot be read.
    """
    with translated_os_errors(path):
        output = read_output(path)
    require_intact(output, str(path))
    return output


def require_intact(output: Output, name: str) -> None:
    """Check the bytes of an output, called `name`. Raises OutputError if it is damaged, or cannot be read."""
    with translated_os_errors(output.path):
        for checks in (check_bytes, check_columns):
            for check in checks(output):
                if not check.passed:
                    raise OutputError(f"{name} is damaged: {check.name}: {check.detail}; {REMEDY}")


def check(name: str, problem: str | None, detail: str) -> Check:
    """Return a check that fails with `problem`, or passes with `detail` if there is none."""
    return Check(name=name, passed=problem is None, detail=problem or detail)


def check_bytes(output: Output) -> Iterator[Check]:
    return _check_parquet(output) if output.is_parquet else _check_arrow(output)


def _check_parquet(output: Output) -> Iterator[Check]:
    if output.blocks or output.rows == 0:
        yield _check_blocks(output, "row group")
        yield check("footer", None, "matches its CRC32")
        return
    yield check("metadata", None, "matches its CRC32")
    try:
        for _ in output.stored_batches():
            pass
    except OutputError as error:
        yield check("pages", str(error), "")
    else:
        yield check("pages", None, "all match their CRC32; an earlier version wrote none of headers and statistics")


def _check_blocks(output: Output, kind: str) -> Check:
    damaged, name = blocks.damaged(output.path, output.blocks), "batches" if kind == "batch" else f"{kind}s"
    problem = None
    if damaged:
        verb = "does not match its CRC32" if len(damaged) == 1 else "do not match their CRC32"
        problem = f"{blocks.described(output.blocks, damaged, kind)} {verb}"
    return check(name, problem, f"{len(output.blocks):,}, all match their CRC32")


def _check_arrow(output: Output) -> Iterator[Check]:
    head = arrow_file.head(output.schema)
    with output.path.open("rb") as file:
        problem = None if file.read(len(head)) == head else "does not match the schema in the footer"
    yield check("head", problem, f"{len(head):,} bytes")
    batches = _check_blocks(output, "batch")
    yield batches
    if batches.passed:
        yield check_footer(output)


def check_footer(output: Output) -> Check:
    """Check that the footer of an Arrow file, whose batches are intact, is the one that follows from them."""
    end = output.blocks[-1].end_offset if output.blocks else len(arrow_file.head(output.schema))
    with output.path.open("rb") as file:
        file.seek(end)
        expected = _expected_footer(output)
        same = file.read(len(expected) + 1) == expected
    problem = None if same else f"what follows byte {end:,} does not match the batches and counts"
    return check("footer", problem, f"{output.path.stat().st_size - end:,} bytes")


def _expected_footer(output: Output) -> bytes:
    try:
        return arrow_file.footer(output.path, output.schema, output.blocks, output.promises)
    except (OutputError, pa.ArrowException):  # the metadata promises more batches, or different ones
        return b""


def check_columns(output: Output) -> Iterator[Check]:
    passages = PASSAGE_COLUMNS if output.has_passages else ()
    expected = {"row": pa.int64(), **dict(passages), **dict.fromkeys(output.vector_columns, output.vector_type)}
    found = {name: [field.type for field in output.schema if field.name == name] for name in expected}
    wrong = [
        f"{name} is {' and '.join(map(str, found[name])) or 'missing'}, expected {type_}"
        for name, type_ in expected.items()
        if found[name] != [type_]
    ]
    names = " and ".join(output.vector_columns)
    yield check("columns", "; ".join(wrong) or None, f"row, and {names} of {output.dims:,} dimensions")
    if output.vector_dtype == "int8":
        ranges = np.zeros(0) if output.ranges is None else output.ranges
        sound = ranges.shape == (output.dims,) and np.all(np.isfinite(ranges) & (ranges > 0))
        yield check("ranges", None if sound else "not a positive number for each dimension", "one for each dimension")


def _check_errors(output: Output, path: Path) -> Iterator[Check]:
    """Check the file of row errors at `path`, if there is one or should be one."""
    counted, promised = output.counts.get("errors", 0), output.errors_crc32
    if not path.is_file():
        problem = None
        if promised is not None:
            problem = f"{path.name}, which lists {counted:,} row errors, is missing: restore it, or embed again"
        elif path.exists():
            problem = f"{path.name} is not a regular file, and the output has no row errors: delete it"
        if problem is not None:
            yield check("row errors", problem, "")
        return
    lines = crc32 = 0
    with path.open("rb") as file:
        is_list = is_row_error(file.readline(FIRST_LINE_BYTES))
        file.seek(0)
        while piece := file.read(_READ_BYTES):
            lines, crc32 = lines + piece.count(b"\n"), zlib.crc32(piece, crc32)
    problem = None
    if promised is not None and f"{crc32:08x}" != promised:
        problem = f"{path.name} does not match its CRC32 in the output: it is damaged, or another output's"
    elif not is_list or lines != counted:
        problem = f"{path.name} has {lines:,} lines, and the output {counted:,} row errors: it is another output's"
    yield check("row errors", problem, f"{counted:,}, in {path.name}")


def _check_values(output: Output) -> Iterator[Check]:
    rows = nulls = 0
    problems: dict[str, str] = {}  # the first problem of each kind
    expected = output.rows_of_inputs
    last = (expected.start - 1, 0)
    for batch in output.batches():
        for name, problem in _problems(output, batch, rows, last):
            problems.setdefault(name, problem)
        rows += batch.num_rows
        last = _last_number(output, batch) if batch.num_rows else last
        nulls += sum(batch.column(name).null_count for name in output.vector_columns)
    counted = output.vectors_missing
    yield check("rows", None if rows == output.rows else f"{rows:,}, the metadata says {output.rows:,}", f"{rows:,}")
    if last[0] + 1 != expected.stop:
        problems.setdefault("order", f"the last row is numbered {last[0]:,}, expected {expected.stop - 1:,}")
    yield check("order", problems.get("order"), f"numbered from {expected.start:,}, without a gap")
    in_inputs = sum(file["rows"] for file in output.inputs)
    yield check("inputs", _inputs_problem(output), f"{len(output.inputs):,}, with {in_inputs:,} rows in total")
    yield check(
        "nulls",
        None if nulls == counted else f"{nulls:,}, the metadata says {counted:,}",
        f"{nulls:,}, as in the metadata",
    )
    yield check("finite", problems.get("finite"), "all values")
    if output.normalize and output.vector_dtype in _UNIT_TOLERANCE:
        yield check("unit length", problems.get("unit length"), f"to {_UNIT_TOLERANCE[output.vector_dtype]}")


def _numbers(output: Output, batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Return the numbers of the rows, and of the passages in each if there are any: [n, 2]."""
    rows = batch.column("row").to_numpy(zero_copy_only=False)
    passages = batch.column("chunk").to_numpy(zero_copy_only=False) if output.has_passages else np.zeros_like(rows)
    return np.stack([rows, passages], axis=1)


def _last_number(output: Output, batch: pa.RecordBatch) -> tuple[int, int]:
    row, passage = _numbers(output, batch)[-1].tolist()
    return row, passage


def _problems(
    output: Output, batch: pa.RecordBatch, first_row: int, last: tuple[int, int]
) -> Iterator[tuple[str, str]]:
    """Yield the problems of a batch that begins at `first_row`; `last` is the number before its first one."""
    numbers = _numbers(output, batch)
    rows, passages = numbers.T
    rows_before, passages_before = np.concatenate([[last], numbers])[:-1].T
    right = (rows == rows_before + 1) & (passages == 0)
    if output.has_passages:
        right |= (rows == rows_before) & (passages == passages_before + 1)
    for i in np.flatnonzero(~right)[:1]:
        passage = f", passage {passages[i]}" if output.has_passages else ""
        yield "order", f"row {first_row + i:,} is numbered {rows[i]}{passage}"
    for name in output.vector_columns:
        yield from _vector_problems(output, *output.vectors(batch, name), first_row)


def _vector_problems(
    output: Output, vectors: Array, valid: npt.NDArray[np.bool_], first_row: int
) -> Iterator[tuple[str, str]]:
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
            return f"{file['uri']} starts at row {file['first_row']:,}, expected {first_row:,}"
        first_row += file["rows"]
    if output.shard is not None:
        problem = f"they have {first_row:,} rows, the shard ends with row {output.shard.stop - 1:,}"
        return problem if output.shard.stop > first_row else None
    return None if first_row == output.input_rows else f"they have {first_row:,} rows, the output {output.input_rows:,}"
