"""One contestant of `benchmarks.embed`, in a process of its own: loads a model, embeds the rows, prints one JSON line.

    python -m benchmarks.embed_contestant NAME MODEL ROWS.parquet VECTORS.npy DTYPE MAX_LENGTH

fastvec is the whole command, from the file to the file, and the caller times its process from start to end. Of the
others only the encoding is timed, the model loaded and warm and the texts in memory.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import energy
from fastvec.report import peak_memory_bytes

Vectors = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]
CHECKED = 256  # vectors that are compared
# texts of a padded batch: sentence-transformers' default, and what fills a GPU
BATCH_SIZES = {"cpu": 32, "cuda": 256}


class Missing(Exception):
    """This contestant is not installed, or does not run here."""


def fastvec(model: str, rows: Path, vectors: Path, dtype: str, max_length: int, quantize: str) -> dict[str, Any]:
    import fastvec.cli
    from fastvec.errors import FastvecError

    command: Any = fastvec.cli.embed
    output = vectors.with_suffix(".arrow")
    arguments = [str(rows), "-o", str(output), "--model", model, "--dtype", dtype, "--overwrite", "--column", "text"]
    arguments += ["--max-length", str(max_length), *(["--quantize", quantize] if quantize else [])]
    try:
        with suppress(SystemExit):  # the command ends its process; one that failed leaves no file
            command.main(args=arguments)
    except FastvecError as error:
        raise Missing(str(error)) from None
    with pa.memory_map(str(output)) as source:
        column = pa.ipc.open_file(source).get_batch(0).column("embedding")[:CHECKED]
        np.save(vectors, column.flatten().to_numpy().reshape(len(column), -1))
    return {}


def sentence_transformers(attention: str) -> Callable[[str, str, int], Encode]:
    def load(model: str, dtype: str, max_length: int) -> Encode:
        import torch
        from sentence_transformers import SentenceTransformer

        if attention == "flash_attention_2" and not torch.cuda.is_available():
            raise Missing("needs a GPU")
        given = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
        encoder = SentenceTransformer(model, model_kwargs=given)
        encoder.max_seq_length = max_length
        batch_size = BATCH_SIZES[encoder.device.type]

        def encode(texts: Sequence[str]) -> Vectors:
            found: Vectors = encoder.encode(list(texts), batch_size=batch_size, show_progress_bar=False)
            return found

        return encode

    return load


def transformers(model: str, dtype: str, max_length: int) -> Encode:
    """What one writes first: batches in the order of the rows, padded to the longest."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    decoder: Any = AutoModel.from_pretrained(model, dtype=getattr(torch, dtype)).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> Vectors:
        found = []
        for begin in range(0, len(texts), BATCH_SIZES[device]):
            batch = list(texts[begin : begin + BATCH_SIZES[device]])
            inputs = tokenizer(batch, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
            inputs = inputs.to(device)
            mask = inputs["attention_mask"][..., None]
            states = decoder(**inputs, use_cache=False).last_hidden_state
            pooled = (states * mask).sum(dim=1).float() / mask.sum(dim=1)
            found.append(torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy())
        return np.concatenate(found)

    return encode


OURS = {"fastvec": "", "fastvec, int8": "int8", "fastvec, fp8": "fp8"}
OTHERS: dict[str, Callable[[str, str, int], Encode]] = {
    "sentence-transformers": sentence_transformers("sdpa"),
    "sentence-transformers, FlashAttention-2": sentence_transformers("flash_attention_2"),
    "transformers": transformers,
}
NAMES = (*OURS, *OTHERS)


def run(name: str, model: str, rows: Path, vectors: Path, dtype: str, max_length: int) -> dict[str, Any]:
    """`seconds` and `joules` of the encoding for all but fastvec, and what it took at most of both memories."""
    found: dict[str, Any] = {}
    if name in OURS:
        found = fastvec(model, rows, vectors, dtype, max_length, OURS[name])
    else:
        texts = pq.read_table(rows)["text"].to_pylist()
        encode = OTHERS[name](model, dtype, max_length)
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
