from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner

from benchmarks import formats


def test_every_format_has_a_rate(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"text": ["The whale\ndives.", 'She said "no".']}), corpus)
    done = CliRunner().invoke(formats.main, [str(corpus), "--rows", "10", "--rounds", "1"])
    assert done.exit_code == 0, done.output
    first, *rates = done.output.splitlines()
    assert first == "10 texts, 0 MB"
    suffixes = [
        ".arrow",
        ".csv",
        ".csv.gz",
        ".csv.zst",
        ".jsonl",
        ".jsonl.gz",
        ".jsonl.zst",
        ".parquet",
        ".tsv",
        ".txt",
    ]
    assert [rate.split()[0] for rate in rates] == suffixes
