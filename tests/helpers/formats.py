"""Writes a table of strings in every format that a corpus can have."""

import csv
import gzip
import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pyarrow as pa

from tests.helpers.corpora import write_arrow, write_parquet, write_stream


def jsonl(table: pa.Table) -> bytes:
    """Return JSON lines with blank lines between, which are no rows."""
    rows = [json.dumps(row, ensure_ascii=number % 2 == 0) for number, row in enumerate(table.to_pylist())]
    return "\n".join(["", rows[0], "  \t", *rows[1:], "", ""]).encode()


def delimited_by(delimiter: str) -> Callable[[pa.Table], bytes]:
    """Return what writes CSV. A null is an empty field without quotes, which Python would put around it."""

    def write(table: pa.Table) -> bytes:
        file = StringIO()
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerow(table.column_names)
        writer.writerows([NULL if value is None else value for value in row.values()] for row in table.to_pylist())
        return file.getvalue().replace(f'"{NULL}"', "").encode()

    return write


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd"))


NULL = "(null)"
CSV, TSV, SEMICOLONS = delimited_by(","), delimited_by("\t"), delimited_by(";")
BOM = b"\xef\xbb\xbf"
CONTENTS: dict[str, Callable[[pa.Table], bytes]] = {
    "a.jsonl": jsonl,
    "a.ndjson": lambda table: jsonl(table).replace(b"\n", b"\r\n"),
    "bom.json": lambda table: BOM + jsonl(table).lstrip(),
    "a.jsonl.gz": lambda table: gzip.compress(jsonl(table)[:1000]) + gzip.compress(jsonl(table)[1000:]),
    "a.jsonl.zst": lambda table: zstd(jsonl(table)),
    "unnamed": jsonl,
    "a.csv": CSV,
    "bom.CSV": lambda table: BOM + CSV(table),
    "semicolons.csv": SEMICOLONS,
    "a.csv.gz": lambda table: gzip.compress(CSV(table)),
    "a.tsv": TSV,
    "a.tsv.zst": lambda table: zstd(TSV(table)),
}
NAMES = [*CONTENTS, "a.parquet", "a.arrow", "a.stream"]


def write_as(name: str, folder: Path, table: pa.Table) -> Path:
    """Write `table` to a file of this name, in the format that the name says; columnar ones in groups of five rows."""
    path = folder / name
    if name in CONTENTS:
        path.write_bytes(CONTENTS[name](table))
        return path
    write = {".parquet": write_parquet, ".arrow": write_arrow, ".stream": write_stream}[path.suffix]
    return write(path, table, group_rows=5)
