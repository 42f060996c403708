from pathlib import Path

import pytest

from fastvec import Encoder, embed
from fastvec.shards.folder import LocalFolder


@pytest.fixture(scope="session")
def finished(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalFolder:
    """Three shards of four rows, with a row error in the second."""
    base = tmp_path_factory.mktemp("shards")
    sources = [base / f"{name}.jsonl" for name in "abc"]
    for number, source in enumerate(sources):
        lines = [f'{{"text": "row {row} of file {number}"}}' for row in range(4)]
        source.write_text("\n".join(["{broken", *lines[1:]] if number == 1 else lines))
    encoder = Encoder.from_pretrained(tiny_llama, dtype="float32", device="cpu")
    embed(sources, f"{base}/vecs/", encoder=encoder, shard_rows=4)
    return LocalFolder(base / "vecs")
