"""Trains every objective for a few steps: run by torchrun in several processes, or called in a single one.

    torchrun … -m tests.training.ranks MODEL DATA FOLDER [--fsdp]

The optimizer is SGD, whose step is proportional to the gradient. Adam's is not: if a gradient is only the rounding
error of a zero, Adam takes a full-size step in a direction that depends on the processor.
"""

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

import fastvec
from fastvec.training import learner

OBJECTIVES: dict[str, dict[str, Any]] = {
    "mntp": {"column": "text", "lora_dropout": 0.1},
    "simcse": {"column": "title", "grad_cache": 3, "temperature": 0.5},
    "contrastive": {
        "query": "title",
        "positive": "start",
        "negatives": ("other", "another"),  # the processes get unequal numbers of these, hence of parts
        "grad_cache": 3,
        "warmup": 0,
        "temperature": 0.5,
    },
    "distil": {"column": "title", "vectors": "vector", "grad_cache": 3},
}
LEARNING_RATE = 0.5


def train(objective: str, model: Path, data: Path, folder: Path, *, processes: int, **options: Any) -> None:
    """Train on eight examples per step, whatever the number of processes."""
    arguments_of = learner._arguments

    def with_sgd(*arguments: Any) -> TrainingArguments:
        found = arguments_of(*arguments)
        found.optim = OptimizerNames.SGD
        return found

    with mock.patch.object(learner, "_arguments", with_sgd):
        fastvec.adapt(
            objective=objective,
            model=model,
            data=[data],
            output=folder / objective,
            steps=4,
            batch_size=8 // processes,
            max_length=24,
            lr=LEARNING_RATE,
            dtype="float32",
            device="cpu",
            save_every=2,
            **{**OBJECTIVES[objective], **options},
        )


if __name__ == "__main__":
    for name in OBJECTIVES:
        train(name, *map(Path, sys.argv[1:4]), processes=2, fsdp=sys.argv[4:] == ["--fsdp"])
    os._exit(0)  # as the command ends: without tearing down libraries that still have threads
