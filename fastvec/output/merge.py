"""`fastvec merge`: joins finished outputs of the same model and settings into one."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fastvec.errors import OutputError, UsageError
from fastvec.fingerprint import SHOWN_DIFFERENCES, fingerprint_differences
from fastvec.output import arrow_file, parquet_file
from fastvec.output.convert import Written, require_replaceable
from fastvec.output.ownership import replacing_errors
from fastvec.output.reader import Output
from fastvec.output.verify import open_intact
from fastvec.stores.address import require_local
from fastvec.system.durable_files import draft_path, replacing, translated_os_errors

# the fields of a fingerprint in which outputs of one model and settings may differ
OWN_TO_A_RUN = ("inputs", "column", "template", "instruction_column", "rows", "hash", "reuse")


def merge_files(paths: Sequence[str | Path], output: str | Path, *, overwrite: bool = False) -> Written:
    """Join the finished outputs at `paths`, in this order, into one `.arrow` or `.parquet` file.

    `row` is numbered anew over all of them, and the lists of inputs and the counts are joined. The memory needed is
    that of one record batch or row group.

    Raises UsageError without `paths`, and for a file that is given twice; OutputError if a file is not a finished
    output or is damaged, if two differ in model, settings or columns, or if `output` cannot be written; RefusedError if
    `output` exists, unless `overwrite`; DiskFullError. An old `output` stays as it was then.
    """
    target = require_local(output)
    if target.suffix not in (".arrow", ".parquet"):
        raise OutputError(f"{output} ends in neither .arrow nor .parquet, the formats that can be written")
    if not paths:
        raise UsageError("no output was given: name the files to join")
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise UsageError("a file was given twice: its rows would be in the output twice")
    with translated_os_errors(target):
        parts = [open_intact(require_local(path)) for path in paths]
        for part in parts:
            if part.shard is not None:
                raise OutputError(f"{part.path} is one of several shards: merge their folder, {part.path.parent}")
        for part in parts[1:]:
            _require_same_settings(parts[0], part)
        require_replaceable(target, overwrite=overwrite)
        schema, counts = _schema(parts), _summed([part.counts for part in parts])
        # the errors file beside a replaced output was its own
        with replacing(target, around=partial(replacing_errors, target, b"")) as fd:
            if target.suffix == ".arrow":
                arrow_file.write(draft_path(target), fd, schema, _batches(parts, schema), counts)
            else:
                parquet_file.write(fd, schema, _batches(parts, schema), parts[0].vector_columns, counts)
        rows = sum(part.rows for part in parts)
        return Written(output=str(output), rows=rows, size_bytes=target.stat().st_size)


def _require_same_settings(first: Output, other: Output) -> None:
    problems = fingerprint_differences(_settings(first), _settings(other))[:SHOWN_DIFFERENCES]
    if not problems and first.own.get("ranges") != other.own.get("ranges"):
        problems = ["int8 ranges, of each run's first texts: embed in one run, or with --vector-dtype float16"]
    if not problems and not first.schema.equals(other.schema):
        mine, others = _columns(first), _columns(other)
        problems = [f"columns were {', '.join(sorted(mine - others))}, now {', '.join(sorted(others - mine))}"]
    if problems:
        raise OutputError(f"{other.path} cannot be joined to {first.path}, they differ: {'; '.join(problems)}")


def _columns(output: Output) -> set[str]:
    return {f"{field.name} ({field.type}{'' if field.nullable else ' not null'})" for field in output.schema}


def _settings(output: Output) -> dict[str, Any]:
    return {name: value for name, value in output.fingerprint.items() if name not in (*OWN_TO_A_RUN, "merged")}


def _runs(output: Output) -> list[Mapping[str, Any]]:
    """Return what is its own in the fingerprint of each run whose vectors `output` has."""
    fingerprint = output.fingerprint
    runs: list[Mapping[str, Any]] = fingerprint.get("merged") or [
        {name: fingerprint[name] for name in OWN_TO_A_RUN if name in fingerprint}
    ]
    return runs


def _schema(parts: Sequence[Output]) -> pa.Schema:
    """Return the first part's schema, with the inputs of all, and a fingerprint that is no other job's."""
    inputs, first_row = [], 0
    for part in parts:
        inputs += [{**file, "first_row": first_row + file["first_row"]} for file in part.inputs]
        first_row += part.input_rows
    fingerprint = {**_settings(parts[0]), "merged": [run for part in parts for run in _runs(part)]}
    changed = {b"fastvec.inputs": json.dumps(inputs).encode(), b"fastvec.fingerprint": json.dumps(fingerprint).encode()}
    same = {key: text for key, text in parts[0].schema.metadata.items() if _is_same(key, parts)}
    return parts[0].schema.with_metadata({**same, **changed})


def _is_same(key: bytes, parts: Sequence[Output]) -> bool:
    """Return whether the metadata of all parts agree; of what differs (the names of text columns), nothing is said."""
    return len({(part.schema.metadata or {}).get(key) for part in parts}) == 1


def _summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for one in counts for name in one)
    return {name: sum(one.get(name, 0) for one in counts) for name in names}


def _batches(parts: Sequence[Output], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    row, first_row = schema.get_field_index("row"), 0
    for part in parts:
        for batch in part.stored_batches():
            numbers = pc.add(batch.column(row), pa.scalar(first_row, pa.int64()))
            columns = [*batch.columns[:row], numbers, *batch.columns[row + 1 :]]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)
        first_row += part.input_rows
