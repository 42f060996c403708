"""Runs one contestant of `benchmarks.embed` in its own process, and prints its measurements as one JSON line.

    python -m benchmarks.engines.contestant NAME MODEL ROWS.parquet VECTORS.npy DTYPE MAX_LENGTH MODE

MODE `whole`, for fastvec only, runs the whole command, from input file to output file; the caller times the process.
MODE `steady` loads the model, encodes a tenth of the rows to warm up, and times encoding all of them: for fastvec the
embedding job, from input file to output file, for the others encoding texts in memory.
"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.engines import energy
from benchmarks.engines.engines import ENGINES, Missing
from fastvec.decoders.agreement import LEAST_TEXTS
from fastvec.errors import FastvecError
from fastvec.report import peak_memory_bytes

CHECKED = 256  # number of vectors to compare

Encoded = TypeVar("Encoded")


def fastvec_command(model: str, rows: Path, vectors: Path, dtype: str, max_length: int, quantize: str) -> None:
    import fastvec.cli.commands.embed

    command: Any = fastvec.cli.commands.embed.embed
    output = vectors.with_suffix(".arrow")
    arguments = [str(rows), "-o", str(output), "--model", model, "--dtype", dtype, "--overwrite", "--column", "text"]
    arguments += ["--max-length", str(max_length), *(["--quantize", quantize] if quantize else [])]
    with suppress(SystemExit):  # the command calls sys.exit; if it failed, there is no file to read below
        command.main(args=arguments)
    save_first(output, vectors)


def fastvec_job(
    model: str, rows: Path, vectors: Path, dtype: str, max_length: int, quantize: str
) -> dict[str, float | None]:
    """Time the job on a loaded encoder. A quantized one is compared with the unquantized model in the warm-up."""
    from fastvec import Encoder, embed

    encoder = Encoder.from_pretrained(model, dtype=dtype, max_length=max_length, quantize=quantize or None)

    def encode(count: int) -> Path:
        output = vectors.with_suffix(f".{count}.arrow")
        embed([rows], output, encoder=encoder, column="text", limit=count, overwrite=True)
        return output

    output, found = timed(encode, pq.read_metadata(rows).num_rows, at_least=LEAST_TEXTS if quantize else 1)
    save_first(output, vectors)
    return found


def save_first(output: Path, vectors: Path) -> None:
    """Save the first CHECKED vectors of fastvec's output."""
    with pa.memory_map(str(output)) as source:
        column = pa.ipc.open_file(source).get_batch(0).column("embedding")[:CHECKED]
        np.save(vectors, column.flatten().to_numpy().reshape(len(column), -1))


def engine(name: str, model: str, rows: Path, vectors: Path, dtype: str, max_length: int) -> dict[str, float | None]:
    texts = pq.read_table(rows)["text"].to_pylist()
    encode = ENGINES[name](model, dtype, max_length)
    result, found = timed(lambda count: encode(texts[:count]), len(texts))
    np.save(vectors, result[:CHECKED].astype(np.float32))
    return found


def timed(encode: Callable[[int], Encoded], rows: int, at_least: int = 1) -> tuple[Encoded, dict[str, float | None]]:
    """Encode a tenth of the rows, then all; return the last result, the seconds of both, and the joules of the last."""
    started = time.perf_counter()
    encode(max(rows // 10, at_least))
    warm_up = time.perf_counter() - started
    before, started = energy.counters(), time.perf_counter()
    result = encode(rows)
    steady = time.perf_counter() - started
    return result, {"warm_up": warm_up, "steady": steady, "joules": energy.used(before, energy.counters())}


FASTVEC_VARIANTS = {"fastvec": "", "fastvec, int8": "int8", "fastvec, fp8": "fp8"}
NAMES = (*FASTVEC_VARIANTS, *ENGINES)


def run(name: str, model: str, rows: Path, vectors: Path, dtype: str, max_length: int, mode: str) -> dict[str, Any]:
    """Embed the rows, save the first CHECKED vectors, and return the measurements.

    They are peak `memory` and `device_memory` in bytes and, in the mode `steady`, `warm_up` and `steady` in seconds and
    `joules` of encoding.
    """
    found: dict[str, Any] = {}
    if name not in FASTVEC_VARIANTS:
        found = engine(name, model, rows, vectors, dtype, max_length)
    elif FASTVEC_VARIANTS[name] and pq.read_metadata(rows).num_rows < LEAST_TEXTS:
        raise Missing(f"needs {LEAST_TEXTS} rows: with fewer, all are encoded unquantized too, to compare them")
    elif mode == "steady":
        found = fastvec_job(model, rows, vectors, dtype, max_length, FASTVEC_VARIANTS[name])
    else:
        fastvec_command(model, rows, vectors, dtype, max_length, FASTVEC_VARIANTS[name])
    import torch

    found["memory"] = peak_memory_bytes() or 0
    found["device_memory"] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return found


if __name__ == "__main__":
    name, model, rows, vectors, dtype, max_length, mode = sys.argv[1:]
    try:
        result = run(name, model, Path(rows), Path(vectors), dtype, int(max_length), mode)
    except (ImportError, Missing, FastvecError) as reason:
        result = {"missing": str(reason)}
    print(json.dumps(result))
