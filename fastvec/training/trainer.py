"""Runs transformers' Trainer on packed batches.

The Trainer handles optimizer, schedule, ranks and checkpoints; fastvec computes the loss and gradients of each step.
A checkpoint is the Trainer's checkpoint folder with one more file, written last: `fastvec_place.json`, which says where
the data resumes. A folder without this file is ignored: the run ended before the checkpoint was complete.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fastvec.decoders.packed_transformers import Noise, derived_seed, forward_packed
from fastvec.system.durable_files import sync_tree, write_durably
from fastvec.system.pipeline import Pipeline
from fastvec.texts.packing import Packed
from fastvec.training.objectives.noise import NoiseSource
from fastvec.training.objectives.task import Batch
from fastvec.training.stream import ExampleStream, Place
from fastvec.training.work_folder import PLACE

DENSE = "fastvec_dense"  # the name of the trained layer after the pooling, if the model has one
BATCHES_AHEAD = 4  # read and tokenized while steps run


class Batches:
    """Yields the batch of every step from `start` on.

    A batch has the examples of all ranks, because each rank needs them to weight its own. With several streams, each
    batch comes from one of them, drawn at random with the seed, in proportion to the streams' rows.
    """

    def __init__(self, streams: Sequence[ExampleStream[Any]], *, size: int, rank: int, ranks: int, seed: int) -> None:
        """Make batches of `size` examples per rank, for rank `rank` of `ranks`."""
        self._streams, self._size, self._rank, self._ranks, self._seed = streams, size * ranks, rank, ranks, seed
        self.start = 0
        self.near: Sequence[Place | None] = [None] * len(streams)
        for stream in streams:
            stream.fewest = self._size

    def __iter__(self) -> Iterator[Batch[Any]]:
        taken = self._taken(self.start)
        examples = [
            stream.examples(count * self._size, near)
            for stream, count, near in zip(self._streams, taken, self.near, strict=True)
        ]
        step = self.start
        while True:
            source = examples[self._source(step)]
            yield Batch(step=step, examples=list(islice(source, self._size)), rank=self._rank, ranks=self._ranks)
            step += 1

    def places(self, step: int) -> list[Place]:
        """Return the place from which each stream restarts in a run that resumes with `step`."""
        counts = self._taken(step)
        return [stream.place_before(n * self._size) for stream, n in zip(self._streams, counts, strict=True)]

    def _source(self, step: int) -> int:
        if len(self._streams) == 1:
            return 0
        rows = np.cumsum([stream.corpus.rows for stream in self._streams])
        drawn = np.random.default_rng([self._seed, step]).random() * rows[-1]
        return int(np.searchsorted(rows, drawn, side="right"))

    def _taken(self, step: int) -> list[int]:
        """Return how many batches came from each stream before `step`."""
        counts = [0] * len(self._streams)
        for earlier in range(step):
            counts[self._source(earlier)] += 1
        return counts


@dataclass(kw_only=True, slots=True)
class CompletedStep:
    """A completed step. Its loss and gradient norm stay on the device until they are read."""

    step: int
    loss: torch.Tensor
    learning_rate: float
    tokens: int  # of all ranks
    gradient_norm: Any = 0.0


@dataclass
class _Step:
    """The `task.Pass` of a training step, with the model as wrapped by the Trainer."""

    seed: int
    device: torch.device
    trainer: "PackedTrainer"
    model: nn.Module

    def forward(self, packed: Packed, numbers: Sequence[int]) -> torch.Tensor:
        noise = Noise(seed=self.seed, numbers=numbers, attention_dropout=self.trainer.attention_dropout)
        self.trainer.noise.set(noise, packed.lengths, self.device)
        return forward_packed(self.model, packed, noise)

    def autocast(self) -> AbstractContextManager[None]:
        """Return the Trainer's autocast context, which also encloses each forward of the wrapped model.

        It must not enclose a whole step. The backward does not need it, because it runs in the dtypes of its forward.
        And autocast caches cast weights: the second pass of gradient caching could get weights that the first pass cast
        without a graph.
        """
        context: AbstractContextManager[None] = self.trainer.accelerator.autocast()
        return context

    def part(self, *, last: bool) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = self.trainer.accelerator.no_sync(self.model)
        return nullcontext() if last else context


class PackedTrainer(Trainer):
    """Trains `model`, which a `Decoder` has set up for packed batches, on a task."""

    def __init__(
        self,
        *,
        model: nn.Module,
        args: TrainingArguments,
        task: Any,
        batches: Batches,
        noise: NoiseSource,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__(model=model, args=args, callbacks=[_PlaceKeeper(batches)])
        self.task, self.batches, self.noise, self.attention_dropout = task, batches, noise, attention_dropout
        self.taken: list[CompletedStep] = []  # steps whose losses were not yet read

    def resume(self, folder: Path) -> int:
        """Train from the newest checkpoint in `folder`, if any, to the last step or a stop; return the step reached."""
        checkpoint = newest_checkpoint(folder)
        if checkpoint is not None:
            path, self.batches.start, self.batches.near = checkpoint
            if self.batches.start >= self.args.max_steps:  # the Trainer would run one more step
                self._load_from_checkpoint(str(path))
                return self.batches.start
        with Pipeline() as pipeline:
            self._ahead = pipeline.run_ahead("read", self.batches, feeds="train", depth=BATCHES_AHEAD)
            self.train(resume_from_checkpoint=None if checkpoint is None else str(path))
        return int(self.state.global_step)

    def get_train_dataloader(self) -> Any:
        return self._ahead

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], None]:
        return [next(epoch_iterator)], None

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        model.train()
        seed = derived_seed(self.args.seed, inputs.step)
        step = _Step(seed=seed, device=self.args.device, trainer=self, model=model)
        loss: torch.Tensor = self.task.learn(inputs, step)
        self.noise.set(None, (), self.args.device)
        rate = self._get_learning_rate()
        self.taken.append(
            CompletedStep(step=inputs.step + 1, loss=loss, learning_rate=rate, tokens=self.task.tokens(inputs))
        )
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        self.taken[-1].gradient_norm = norm
        return norm

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        model: Any = self.model
        if self.args.should_save:
            # otherwise peft compares the vocabulary with that of the base model on the hub
            extra = {"save_embedding_layers": False} if isinstance(model, PeftModel) else {}
            model.save_pretrained(output_dir, state_dict=state_dict, **extra)
            if (dense := getattr(model, DENSE, None)) is not None:  # a PeftModel saves only its adapter
                save_file(dense.state_dict(), Path(str(output_dir), f"{DENSE}.safetensors"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if (dense := getattr(self.model, DENSE, None)) is not None:
            dense.load_state_dict(load_file(Path(resume_from_checkpoint, f"{DENSE}.safetensors")))

    def floating_point_ops(self, inputs: Any) -> int:
        return 0


class _PlaceKeeper(TrainerCallback):
    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
            sync_tree(folder)
            places = [place.to_json() for place in self._batches.places(state.global_step)]
            write_durably(folder / PLACE, json.dumps(places))


def newest_checkpoint(folder: Path) -> tuple[Path, int, list[Place]] | None:
    """Return the path and step of the last complete checkpoint in `folder`, and where each stream resumes; or None."""
    found = [(int(path.parent.name.rpartition("-")[2]), path) for path in folder.glob(f"checkpoint-*/{PLACE}")]
    if not found:
        return None
    step, path = max(found)
    return path.parent, step, [Place.from_json(place) for place in json.loads(path.read_text())]
