"""A damaged output is refused before its rows are compared: the result says which rows to keep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastvec import dedup, neighbors
from fastvec.errors import OutputError
from tests.pairs.cases import clustered, save

JOBS: dict[str, Callable[[Path, Path, Path], Any]] = {
    "dedup": lambda damaged, _, output: dedup(damaged, output, threshold=0.9),
    "dedup of it against another": lambda damaged, other, output: dedup(damaged, output, threshold=0.9, against=other),
    "dedup of another against it": lambda damaged, other, output: dedup(other, output, threshold=0.9, against=damaged),
    "neighbors": lambda damaged, _, output: neighbors(damaged, output),
}


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_damaged_output_is_refused(tmp_path: Path, job: Callable[[Path, Path, Path], Any]) -> None:
    damaged, other = (save(tmp_path / f"{name}.arrow", clustered(seed, 30)) for seed, name in enumerate("ab"))
    job(damaged, other, tmp_path / "before.jsonl")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 64
    damaged.write_bytes(content)
    with pytest.raises(OutputError, match=r"a\.arrow is damaged: batches: batch \d .* does not match its CRC32"):
        job(damaged, other, tmp_path / "after.jsonl")
    assert not (tmp_path / "after.jsonl").exists()
