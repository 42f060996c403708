import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from benchmarks import reuse


@pytest.mark.slow
def test_both_runs_are_timed(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"text": ["The whale dives into the sea."] * 3}), corpus)
    done = CliRunner().invoke(reuse.main, [str(corpus), "--rows", "50"])
    assert done.exit_code == 0, done.output
    assert re.fullmatch(
        r"50 rows in [\d.]+ s; with \d\d of them reused in [\d.]+ s\n[\d.]+% of the time\n", done.output
    )
