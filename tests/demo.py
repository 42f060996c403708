"""`make demo`: embed a small corpus from the repository with the bundled model, verify the output and search it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from fastvec import Encoder
from tests import ARTICLES

QUERIES = ("silent films of the late 1920s", "bacteria that live in soil", "women racing on skis")


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    output = folder / "vecs.arrow"
    run("embed", str(ARTICLES), "-o", str(output), "--column", "text", "--keep", "title", "--overwrite")
    run("verify", str(output))
    run("inspect", str(output))
    search(output)


def run(*arguments: str) -> None:
    print("\n$ fastvec " + " ".join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "fastvec", *arguments], check=True)


def search(output: Path) -> None:
    """Print the titles of the three texts nearest to each query."""
    with pa.memory_map(str(output)) as source:
        table = pa.ipc.open_file(source).read_all()
    titles = table["title"].to_pylist()
    column = table["embedding"].combine_chunks()
    vectors = column.values.to_numpy().reshape(len(column), -1)
    for query, vector in zip(QUERIES, Encoder.from_pretrained().encode(QUERIES), strict=True):
        scores = vectors @ vector
        nearest = np.argsort(-scores)[:3]
        print(f"\n{query}")
        for row in nearest:
            print(f"  {scores[row]:.2f}  {titles[row]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
