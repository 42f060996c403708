"""Turn a decoder language model into a text encoder and stream whole corpora through it."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastvec.errors import FastvecError

os.environ["USE_HUB_KERNELS"] = "0"  # read when transformers is imported: no compiled kernels from the hub
# Read at the first bfloat16 matrix product on a CPU. Packed batches differ in their number of tokens. oneDNN compiles
# each product anew for each number of tokens and caches 1,024 of them, in each of two caches: 0.9 GB after four small
# products with 600 different numbers of tokens. A batch needs only a handful, one for each shape of weights.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "16")

if TYPE_CHECKING:
    from fastvec.encoder import Encoder
    from fastvec.evaluation.evaluate import evaluate
    from fastvec.jobs.embedding import embed
    from fastvec.output.convert import convert
    from fastvec.pairs.dedup import dedup
    from fastvec.pairs.neighbors import neighbors
    from fastvec.retrieval.job import search
    from fastvec.shards.merge import merge
    from fastvec.training.job import adapt

__version__ = "0.1.0"
__all__ = [
    "Encoder",
    "FastvecError",
    "__version__",
    "adapt",
    "convert",
    "dedup",
    "embed",
    "evaluate",
    "merge",
    "neighbors",
    "search",
]

_LAZY_EXPORTS = {
    "Encoder": "fastvec.encoder",
    "adapt": "fastvec.training.job",
    "convert": "fastvec.output.convert",
    "dedup": "fastvec.pairs.dedup",
    "embed": "fastvec.jobs.embedding",
    "evaluate": "fastvec.evaluation.evaluate",
    "merge": "fastvec.shards.merge",
    "neighbors": "fastvec.pairs.neighbors",
    "search": "fastvec.retrieval.job",
}


def __getattr__(name: str) -> Any:
    """Import torch and transformers only when a name that needs them is used."""
    if name in _LAZY_EXPORTS:
        return getattr(import_module(_LAZY_EXPORTS[name]), name)
    raise AttributeError(f"module 'fastvec' has no attribute {name!r}")
