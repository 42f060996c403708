"""Every objective, a few steps each; run by torchrun as one of several processes, or called in one."""

import sys
from pathlib import Path
from typing import Any

import fastvec

OBJECTIVES: dict[str, dict[str, Any]] = {
    "mntp": {"column": "text", "lora_dropout": 0.1},
    "simcse": {"column": "title", "grad_cache": 3, "temperature": 0.5},
    "contrastive": {
        "query": "title",
        "positive": "start",
        "negatives": ("other", "another"),  # of which the two processes have unequal numbers, and so of parts
        "grad_cache": 3,
        "warmup": 0,
        "temperature": 0.5,
    },
    "distil": {"column": "title", "vectors": "vector", "grad_cache": 3},
}


def train(objective: str, model: Path, data: Path, folder: Path, *, processes: int) -> None:
    """Eight examples a step, whatever the number of processes."""
    fastvec.adapt(
        objective=objective,
        model=model,
        data=[data],
        output=folder / objective,
        steps=4,
        batch_size=8 // processes,
        max_length=24,
        lr=1e-3,
        dtype="float32",
        device="cpu",
        save_every=2,
        **OBJECTIVES[objective],
    )


if __name__ == "__main__":
    for name in OBJECTIVES:
        train(name, *map(Path, sys.argv[1:]), processes=2)
