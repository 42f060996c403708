"""The inputs that a job takes: files of every format, stdin and tables; a killed run resumes with each."""

import gzip
import io
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import dataset

from fastvec import Encoder, embed
from fastvec.errors import InputError, InterruptedRunError, RefusedError, UsageError
from tests import ARTICLES
from tests.helpers.corpora import texts, write_parquet
from tests.helpers.formats import NAMES, jsonl, write_as
from tests.helpers.hub import COMMIT, DATASET, serve_dataset
from tests.helpers.kills import Killed, kill_after
from tests.helpers.outputs import read_output
from tests.helpers.processes import environment

USUAL = {"a.parquet", "a.jsonl.gz", "a.csv"}
ROWS = pq.read_table(ARTICLES, columns=["title", "text"]).slice(0, 60)


@pytest.fixture
def chunks_of_nine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "chunk_limits", {"rows": 9, "bytes": 1 << 20})


@pytest.mark.usefixtures("chunks_of_nine")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in USUAL else pytest.mark.slow) for name in NAMES]
)
def test_a_killed_run_over_any_format_ends_with_the_bytes_of_a_whole_one(
    encoder: Encoder, tmp_path: Path, name: str
) -> None:
    """The vectors are those of the same rows in Parquet."""
    source = write_as(name, tmp_path, ROWS)
    whole, broken, parquet = (tmp_path / f"{name}.arrow" for name in ("whole", "broken", "parquet"))
    options: dict[str, Any] = {"encoder": encoder, "column": "text", "keep": ["title"]}
    embed([source], whole, **options)
    with pytest.raises(Killed):
        embed([source], broken, **options, progress=kill_after(3))
    assert embed([source], broken, **options).resumed_rows == 27
    assert broken.read_bytes() == whole.read_bytes()
    embed([write_parquet(tmp_path / "rows.parquet", ROWS)], parquet, **options)
    assert read_output(whole).equals(read_output(parquet))


@pytest.mark.usefixtures("chunks_of_nine")
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_killed_run_over_lines_of_text_ends_with_the_bytes_of_a_whole_one(
    encoder: Encoder, tmp_path: Path, name: str
) -> None:
    lines = [" ".join(text.split()) for text in ROWS["text"].to_pylist()]
    content = "\n".join([*lines, ""]).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    whole, broken, parquet = (tmp_path / f"{name}.arrow" for name in ("whole", "broken", "parquet"))
    embed(tmp_path / name, whole, encoder=encoder)
    with pytest.raises(Killed):
        embed(tmp_path / name, broken, encoder=encoder, progress=kill_after(3))
    assert embed(tmp_path / name, broken, encoder=encoder).resumed_rows == 27
    assert broken.read_bytes() == whole.read_bytes()
    embed(write_parquet(tmp_path / "rows.parquet", texts([*lines])), parquet, encoder=encoder)
    assert read_output(whole).equals(read_output(parquet))


@pytest.mark.usefixtures("chunks_of_nine")
@pytest.mark.parametrize(
    "make",
    [
        lambda: ROWS,
        lambda: pa.RecordBatchReader.from_batches(ROWS.schema, ROWS.to_batches(7)),
        lambda: pl.from_arrow(ROWS),
        lambda: duckdb.sql("FROM ROWS"),
        lambda: dataset.dataset(ROWS),
        lambda: [ROWS.slice(0, 20), ROWS.slice(20)],
        lambda: pytest.importorskip("pandas").DataFrame(ROWS.to_pydict()),
        lambda: pytest.importorskip("datasets").Dataset.from_dict(ROWS.to_pydict()),
    ],
)
def test_tables_are_inputs_too(encoder: Encoder, tmp_path: Path, make: Callable[[], Any]) -> None:
    parquet, output = tmp_path / "parquet.arrow", tmp_path / "output.arrow"
    options: dict[str, Any] = {"encoder": encoder, "column": "text"}
    embed([write_parquet(tmp_path / "rows.parquet", ROWS)], parquet, **options)
    with pytest.raises(Killed):
        embed(make(), output, **options, progress=kill_after(3))
    assert embed(make(), output, **options).resumed_rows == 27
    assert read_output(output).equals(read_output(parquet))
    assert embed(make(), output, **options).already_finished
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output.arrow", "parquet.arrow", "rows.parquet"]
    with pytest.raises(RefusedError, match=r"output.arrow belongs to another job: inputs"):
        embed(ROWS.slice(1), output, **options)


def test_a_table_that_cannot_be_embedded_is_refused_in_one_line(
    encoder: Encoder, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"^Table: no column contains text. Its columns: n \(int64\)$"):
        embed(pa.table({"n": [1]}), output, encoder=encoder)
    with pytest.raises(UsageError, match="an input is a int: expected a path, a table or a dataset"):
        embed([7], output, encoder=encoder)
    for column in (pl.Series(["a"]), pa.chunked_array([["a"]])):
        with pytest.raises(UsageError, match=r"an input is a \w+ that is no table \("):
            embed(column, output, encoder=encoder)
    damaged = write_parquet(output.with_name("damaged.parquet"), ROWS, compression="snappy")
    content = bytearray(damaged.read_bytes())
    content[1000:1100] = bytes(100)
    damaged.write_bytes(content)
    with pytest.raises(InputError, match=r"^FileSystemDataset: cannot be read: "):
        embed(dataset.dataset(damaged), output, encoder=encoder, column="text")
    damaged.unlink()
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match=r"the input is - \(stdin\), but stdin is closed"):
        embed("-", output, encoder=encoder)
    assert list(output.parent.iterdir()) == []
    assert embed(pa.RecordBatchReader.from_batches(ROWS.schema, []), output, encoder=encoder, column="text").rows == 0


@pytest.fixture
def given_on_stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Put bytes on this process's stdin."""

    def give(content: bytes) -> None:
        read, write = os.pipe()
        os.write(write, content)
        os.close(write)
        monkeypatch.setattr(sys, "stdin", stack.enter_context(io.TextIOWrapper(os.fdopen(read, "rb"))))

    with ExitStack() as stack:
        yield give


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"text": "a sea"}\n{"text": null}\n', ["a sea", None]),
        (b'\xef\xbb\xbf{"text": "a sea"}\n', ["a sea"]),
        (b"a sea\n\nstars", ["a sea", "", "stars"]),
        (b"[a sea]", ["[a sea]"]),
        (pa.compress(b"a sea\nstars\n", codec="zstd").to_pybytes(), ["a sea", "stars"]),
    ],
)
def test_stdin_is_json_lines_or_text(
    encoder: Encoder, output: Path, given_on_stdin: Callable[[bytes], None], content: bytes, expected: list[str | None]
) -> None:
    given_on_stdin(content)
    embed("-", output, encoder=encoder)
    assert [row["uri"] for row in inputs_of(output)] == ["-"]
    file = write_parquet(output.parent / "same.parquet", texts(expected))
    embed(file, output.parent / "same.arrow", encoder=encoder)
    assert read_output(output).equals(read_output(output.parent / "same.arrow"))
    given_on_stdin(content)
    assert embed("-", output, encoder=encoder).already_finished
    given_on_stdin(2 * content)
    with pytest.raises(RefusedError, match="belongs to another job"):
        embed("-", output, encoder=encoder)
    given_on_stdin(b'[{"text": "a sea"},\n{"text": "b"}]')
    with pytest.raises(InputError, match=r"^stdin: a JSON array, not one object per line; convert it: jq"):
        embed("-", output.parent / "x.arrow", encoder=encoder)
    given_on_stdin(b"")
    with pytest.raises(InputError, match=r"^stdin: the file is empty \(0 bytes\)$"):
        embed("-", output.parent / "x.arrow", encoder=encoder)
    with pytest.raises(UsageError, match=r"the input - \(stdin\) is given twice; give it once"):
        embed(["-", "-"], output, encoder=encoder)


def inputs_of(output: Path) -> Any:
    return json.loads(read_output(output).schema.metadata[b"fastvec.inputs"])


def test_a_signal_ends_the_wait_for_stdin(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastvec", "embed", "-", "-o", "vecs.arrow"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not list(tmp_path.iterdir()):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.read() == "fastvec: stopped by SIGINT while stdin was read: nothing was written\n"
        assert process.wait() == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz", "a.csv"])
def test_a_signal_ends_the_counting_of_rows(encoder: Encoder, tmp_path: Path, name: str) -> None:
    content = b"text\n" + b'{"text": "a sea"}\n' * 400_000
    (tmp_path / name).write_bytes(gzip.compress(content[5:]) if name.endswith(".gz") else content)
    calls = itertools.count()
    with pytest.raises(InterruptedRunError, match=r"^stopped by SIGTERM while rows were counted: nothing was written$"):
        embed(
            tmp_path / name,
            tmp_path / "vecs.arrow",
            encoder=encoder.settings,
            stop_signal=lambda: signal.SIGTERM if next(calls) >= 2 else None,
        )
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.slow
def test_a_dataset_of_the_hub_is_downloaded_and_known_by_its_commit(tmp_path: Path, output: Path) -> None:
    """The cache has it afterwards. In processes of their own, because the hub's client reads its variables once."""
    rows = jsonl(ROWS.slice(0, 9))
    other = rows.replace(b"a", b"e")
    files = {"data/a.jsonl": rows, "data/b.jsonl": other, "other/c.csv": b"text\n", "README.md": rows}
    files["data/same.jsonl"] = rows  # the cache has equal files once
    online = {**environment(), "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}

    def run(given: str, **variables: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "fastvec", "embed", given, "-o", str(output), "--column=text", "--quiet"]
        done = subprocess.run(command, env={**online, **variables}, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    url = f"hf://datasets/{DATASET}"
    with serve_dataset(files) as address:
        assert run(f"{url}/data", HF_ENDPOINT=address) == (0, "")
        code, mixed = run(url, HF_ENDPOINT=address)
        assert (code, mixed[:80]) == (
            2,
            f"fastvec: {url}: the folder contains 3 JSON lines and 1 CSV files; give a"[:80],
        )
        code, absent = run("hf://datasets/org/absent", HF_ENDPOINT=address)
        assert code == 1
        assert absent.startswith("fastvec: hf://datasets/org/absent: no such repository on the hub; if it is private")
        _, nothing = run(f"{url}/nothing", HF_ENDPOINT=address)
        assert (
            f"\nfastvec: {url}/nothing: the dataset has no data file there" in nothing
        )  # after a line of the hub's client
    found = [file["uri"] for file in inputs_of(output)]
    assert found == [f"{url}@{COMMIT}/data/a.jsonl", f"{url}@{COMMIT}/data/b.jsonl", f"{url}@{COMMIT}/data/same.jsonl"]
    assert run(f"{url}@{COMMIT}/data/*.jsonl", HF_HUB_OFFLINE="1") == (0, "")
    assert run("hf://datasets/org") == (
        1,
        "fastvec: hf://datasets/org: expected hf://datasets/org/name, with or without @revision and /file-or-pattern\n",
    )
