"""`make demo`: embed a small shipped corpus and look at the result.

No model is bundled yet, so the demo makes a small decoder with random weights on the spot. Its vectors show that the
pipeline works, not what a trained model finds.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers.utils import logging

from tests.tiny import save_decoder

CORPUS = Path(__file__).parent / "data" / "articles.parquet"


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    model, output = folder / "random-llama", folder / "vecs.arrow"
    print("No model is bundled yet: making a small decoder with random weights.")
    logging.disable_progress_bar()
    texts = pq.read_table(CORPUS)["text"].to_pylist()
    save_decoder(model, "llama", texts=texts, vocab_size=4096, hidden_size=256, intermediate_size=512)

    run(
        "embed",
        str(CORPUS),
        "-o",
        str(output),
        "--model",
        str(model),
        "--column",
        "text",
        "--keep",
        "title",
        "--overwrite",
    )
    run("verify", str(output))
    run("inspect", str(output))
    show_neighbours(output)


def run(*arguments: str) -> None:
    print("\n$ fastvec " + " ".join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "fastvec", *arguments], check=True)


def show_neighbours(output: Path) -> None:
    with pa.memory_map(str(output)) as source:
        table = pa.ipc.open_file(source).read_all()
    titles = table["title"].to_pylist()
    column = table["embedding"].combine_chunks()
    vectors = column.values.to_numpy().reshape(len(column), -1)
    for row in (0, 100, 200):
        nearest = np.argsort(-(vectors @ vectors[row]))[1:4]
        print(f"\nnearest to {titles[row]}: " + ", ".join(titles[i] for i in nearest))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
