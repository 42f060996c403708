"""Runs one contestant of `benchmarks.embed` in its own process: loads a model, embeds the rows, prints one JSON line.

    python -m benchmarks.engines.contestant NAME MODEL ROWS.parquet VECTORS.npy DTYPE MAX_LENGTH

For fastvec it runs the whole command, from input file to output file, and the caller times the process from start to
end. For the others it times only the encoding, with the model loaded and warm and the texts in memory.
"""

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.engines import energy
from benchmarks.engines.engines import BATCH_SIZES, ENGINES, Missing
from fastvec.report import peak_memory_bytes

CHECKED = 256  # number of vectors to compare


def fastvec(model: str, rows: Path, vectors: Path, dtype: str, max_length: int, quantize: str) -> dict[str, Any]:
    import fastvec.cli.embed
    from fastvec.errors import FastvecError

    command: Any = fastvec.cli.embed.embed
    output = vectors.with_suffix(".arrow")
    arguments = [str(rows), "-o", str(output), "--model", model, "--dtype", dtype, "--overwrite", "--column", "text"]
    arguments += ["--max-length", str(max_length), *(["--quantize", quantize] if quantize else [])]
    try:
        with suppress(SystemExit):  # the command calls sys.exit; if it failed, there is no file to read below
            command.main(args=arguments)
    except FastvecError as error:
        raise Missing(str(error)) from None
    with pa.memory_map(str(output)) as source:
        column = pa.ipc.open_file(source).get_batch(0).column("embedding")[:CHECKED]
        np.save(vectors, column.flatten().to_numpy().reshape(len(column), -1))
    return {}


FASTVEC_VARIANTS = {"fastvec": "", "fastvec, int8": "int8", "fastvec, fp8": "fp8"}
NAMES = (*FASTVEC_VARIANTS, *ENGINES)


def run(name: str, model: str, rows: Path, vectors: Path, dtype: str, max_length: int) -> dict[str, Any]:
    """Embed the rows, save the first CHECKED vectors, and return the measurements.

    They are peak `memory` and `device_memory` in bytes and, except for fastvec, `seconds` and `joules` of encoding.
    """
    found: dict[str, Any] = {}
    if name in FASTVEC_VARIANTS:
        found = fastvec(model, rows, vectors, dtype, max_length, FASTVEC_VARIANTS[name])
    else:
        texts = pq.read_table(rows)["text"].to_pylist()
        encode = ENGINES[name](model, dtype, max_length)
        encode(texts[: max(BATCH_SIZES.values())])
        before, started = energy.counters(), time.perf_counter()
        result = encode(texts)
        found["seconds"] = time.perf_counter() - started
        found["joules"] = energy.used(before, energy.counters())
        np.save(vectors, result[:CHECKED].astype(np.float32))
    import torch

    found["memory"] = peak_memory_bytes() or 0
    found["device_memory"] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return found


if __name__ == "__main__":
    name, model, rows, vectors, dtype, max_length = sys.argv[1:]
    try:
        result = run(name, model, Path(rows), Path(vectors), dtype, int(max_length))
    except (ImportError, Missing) as reason:
        result = {"missing": str(reason)}
    print(json.dumps(result))
