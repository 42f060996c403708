"""`make demo`: embed a small corpus with the bundled model, verify the output, search it, and draw a map of it."""

import subprocess
import sys
from pathlib import Path

from tests import ARTICLES

QUERIES = ("silent films of the late 1920s", "bacteria that live in soil", "women racing on skis")


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    output, page = folder / "vecs.arrow", folder / "map.html"
    run("embed", ARTICLES, "-o", output, "--column", "text", "--keep", "title", "--overwrite")
    run("verify", output)
    run("inspect", output)
    for query in QUERIES:
        run("search", output, query, "-k", "3")
    run("map", output, "-o", page, "--png", page.with_suffix(".png"), "--overwrite")


def run(*arguments: str | Path) -> None:
    shown = (f'"{one}"' if " " in str(one) else str(one) for one in arguments)
    print("\n$ fastvec " + " ".join(shown), flush=True)
    subprocess.run([sys.executable, "-m", "fastvec", *map(str, arguments)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
