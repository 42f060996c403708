"""Trains for a few steps: run by torchrun in several processes, or called in a single one.

    torchrun … -m tests.training.ranks MODEL DATA FOLDER copies|split NAME …

The optimizer is SGD, whose step is proportional to the gradient. Adam's is not: if a gradient is only the rounding
error of a zero, Adam takes a full-size step in a direction that depends on the processor.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

import fastvec
from fastvec.training import learner
from fastvec.training.plan import AdaptPlan
from fastvec.training.trainer import PackedTrainer, training_arguments

RUNS: dict[str, dict[str, Any]] = {
    "mntp": {"column": "text", "lora_dropout": 0.1},
    "simcse": {"column": "title", "grad_cache": 3, "temperature": 0.5},
    "contrastive": {
        "query": "title",
        "positive": "start",
        "negatives": ("other", "another"),  # the processes get unequal numbers of these
        "grad_cache": 3,
        "warmup": 0,
        "temperature": 0.5,
    },
    "distil": {"column": "title", "vectors": "vector", "grad_cache": 3},
    "full": {"objective": "simcse", "column": "title", "temperature": 0.5, "full": True},
    "merged": {"objective": "simcse", "column": "title", "temperature": 0.5, "merge": True},
}
LEARNING_RATE = 0.5


def train(name: str, model: Path, data: Path, folder: Path, *, processes: int, fsdp: bool = False) -> None:
    """Train on eight examples per step, whatever the number of processes."""

    def with_sgd(plan: AdaptPlan, place: Path) -> TrainingArguments:
        found = training_arguments(plan, place)
        found.optim = OptimizerNames.SGD
        found.optim_args = "momentum=0.5"  # a state, which checkpoints then have
        return found

    with mock.patch.object(learner, "training_arguments", with_sgd):
        fastvec.adapt(
            model=model,
            data=[data],
            output=folder / name,
            steps=4,
            batch_size=8 // processes,
            max_length=24,
            lr=LEARNING_RATE,
            dtype="float32",
            device="cpu",
            save_every=2,
            fsdp=fsdp,
            **{"objective": name, **RUNS[name]},
        )


def stored_bytes(trainer: PackedTrainer) -> dict[str, int]:
    """Return the bytes of weights, gradients and optimizer state that this process stores, after a backward."""
    model: Any = trainer.model
    weights = list(model.parameters())
    optimizer: Any = trainer.optimizer
    states = [x for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor)]
    return {
        "weights": _bytes(weights),
        "gradients": _bytes([weight.grad for weight in weights if weight.grad is not None]),
        "optimizer": _bytes([x for x in states if x.dim()]),
    }


def _bytes(tensors: list[Any]) -> int:
    own = [x.to_local() if hasattr(x, "to_local") else x for x in tensors]
    return sum(x.numel() * x.element_size() for x in own)


if __name__ == "__main__":
    model, data, folder = map(Path, sys.argv[1:4])
    clip, seen = PackedTrainer._clip_grad_norm, dict[str, int]()

    def clip_and_measure(trainer: PackedTrainer, *arguments: Any) -> Any:
        norm = clip(trainer, *arguments)
        seen.update(stored_bytes(trainer))
        return norm

    for name in sys.argv[5:]:
        with mock.patch.object(PackedTrainer, "_clip_grad_norm", clip_and_measure):
            train(name, model, data, folder, processes=2, fsdp=sys.argv[4] == "split")
        (folder / f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(seen))
    os._exit(0)  # as the command ends: without tearing down libraries that still have threads
