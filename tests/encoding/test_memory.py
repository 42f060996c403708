"""`Encoder.stream` keeps neither what it has read nor what it has made."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.processes import environment
from tests.helpers.tiny import save_decoder

SCRIPT = """
import sys
from pathlib import Path
from fastvec import Encoder
from fastvec.report import peak_memory_bytes

encoder = Encoder.from_pretrained(Path(sys.argv[1]), device="cpu", dtype="float32", max_length=32)
type(encoder).chunk_limits = {"rows": 512, "bytes": 65_536, "row_bytes": 128}
texts = (f"text {row} " * 200 for row in range(10**9))  # 2 kB each, of which 64 characters are encoded
for row, _ in enumerate(encoder.stream(texts)):
    if row in (20 * 512, 60 * 512, 100 * 512, 140 * 512):
        print(peak_memory_bytes())
    if row == 140 * 512:
        break
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the peak memory of one process")
def test_memory_does_not_grow_with_the_stream(tmp_path: Path) -> None:
    # One thin layer of 1,024 dimensions: vectors of 4 kB, of which 40 chunks are far above what allocators keep.
    thin: dict[str, Any] = {
        "num_hidden_layers": 1,
        "intermediate_size": 8,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
    }
    model = save_decoder(tmp_path / "wide", "llama", hidden_size=1024, head_dim=8, **thin)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model)],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    growth = [after - before for before, after in itertools.pairwise(map(int, done.stdout.split()))]
    assert len(growth) == 3
    # A stream that kept what it has read or made would grow in each span of 40 chunks, by 40 MB of texts or by the
    # vectors' 84 MB at least. The allocators grow in some spans, by 5 to 20 MB, which differs between machines.
    assert min(growth) < 40 * 512 * 2_000 / 2  # half of the texts
