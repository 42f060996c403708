"""Small files of each format and encoding, which fuzzing begins with."""

import gzip
import json
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ipc

WORDS = ["one", None, "", "four", "one", "ünïcode 😀", '"quoted", with a comma', "two\nlines", "x" * 40]


def table() -> pa.Table:
    """Return a few rows with a text and with columns of all kinds that can be kept."""
    count = len(WORDS)
    return pa.table(
        {
            "id": pa.array(range(count), pa.int64()),
            "text": pa.array(WORDS, pa.string()),
            "kind": pa.array(["a", "b", None] * (count // 3)).dictionary_encode(),
            "tags": pa.array([["x", None], [], None] * (count // 3), pa.list_(pa.string())),
            "meta": pa.array([{"lang": "en", "score": 0.5}, None, {"lang": None, "score": None}] * (count // 3)),
            "map": pa.array([[("k", 1)], None, []] * (count // 3), pa.map_(pa.string(), pa.int32())),
        }
    )


def seeds() -> dict[str, bytes]:
    """Return the content of each file by its name, whose suffix is what fastvec tells text formats by."""
    rows = table()
    plain = rows.select(["id", "text"])
    lines = "".join(
        json.dumps(row, ensure_ascii=False) + "\n" for row in rows.drop_columns(["map"]).to_pylist()
    ).encode()
    records = b'id,text\n1,one\n2,\n3,""\n4,"four, ""quoted"""\n5,"two\nlines"\n6\n7,seven,more\n8,eight\n'
    return {
        "dictionary.parquet": _parquet(rows, row_group_size=4),
        "plain.parquet": _parquet(plain, use_dictionary=False, row_group_size=4),
        "checksum.parquet": _parquet(plain, write_page_checksum=True, row_group_size=4),
        "zstd-v2.parquet": _parquet(plain, compression="zstd", data_page_version="2.0"),
        "delta.parquet": _parquet(plain, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"}),
        "index.parquet": _parquet(plain, write_page_index=True, store_schema=False, compression="gzip"),
        "view.arrow": _arrow(rows.set_column(1, "text", rows["text"].cast(pa.string_view()))),
        "plain.arrow": _arrow(plain),
        "zstd.arrow": _arrow(plain, compression="zstd"),
        "rows.stream": _stream(rows),
        "rows.jsonl": lines,
        "rows.jsonl.gz": gzip.compress(lines, mtime=0),
        "rows.jsonl.zst": bytes(pa.compress(lines, codec="zstd")),
        "rows.csv": records,
        "rows.tsv": records.replace(b",", b"\t"),
        "rows.txt": "\n".join(word or "" for word in WORDS).encode(),
    }


def _parquet(rows: pa.Table, **options: Any) -> bytes:
    file = BytesIO()
    pq.write_table(rows, file, **{"compression": "none", **options})
    return file.getvalue()


def _arrow(rows: pa.Table, compression: str | None = None) -> bytes:
    file = BytesIO()
    with ipc.new_file(file, rows.schema, options=ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(rows, 4)
    return file.getvalue()


def _stream(rows: pa.Table) -> bytes:
    file = BytesIO()
    with ipc.new_stream(file, rows.schema) as writer:
        writer.write_table(rows, 4)
    return file.getvalue()
