"""Runs transformers' Trainer on packed batches.

The Trainer handles optimizer, schedule, ranks and checkpoints; fastvec computes the loss and gradients of each step.
A checkpoint is the Trainer's checkpoint folder, with files of our own that do not depend on the number of ranks: the
trained weights, the states of optimizer and schedule, and, written last, `fastvec_place.json`, which says where the
data resumes. A folder without that is ignored: the run ended before the checkpoint was complete.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import AutocastKwargs
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fastvec.decoders.packed_transformers import Noise, derived_seed, forward_packed
from fastvec.distributed.sharding import (
    load_optimizer_state,
    load_trained_weights,
    optimizer_state,
    trained_weights,
    whole,
)
from fastvec.system.durable_files import sync_tree, write_durably
from fastvec.system.pipeline import Pipeline
from fastvec.texts.packing import Packed
from fastvec.training.objectives.noise import NoiseSource
from fastvec.training.objectives.task import Batch
from fastvec.training.plan import AdaptPlan
from fastvec.training.stream import ExampleStream, Place
from fastvec.training.work_folder import PLACE

WEIGHTS, OPTIMIZER = "fastvec_weights.safetensors", "fastvec_optimizer.pt"
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
            stream.batch = self._size

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
        # split gradients are averaged in each part: until then, each rank would store them whole
        if last or self.trainer.split:
            return nullcontext()
        context: AbstractContextManager[None] = self.trainer.accelerator.no_sync(self.model)
        return context


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
        split: bool = False,
    ) -> None:
        """Make the trainer; the model is `split` over the ranks already, or else DistributedDataParallel wraps it."""
        # with several GPUs and one process, the Trainer would copy the model to all of them, though a batch has one row
        args._n_gpu = min(args.n_gpu, 1)
        super().__init__(model=model, args=args, callbacks=[_PlaceKeeper(batches)])
        self.split = split
        if split:  # accelerate's own FSDP runs on no CPU; a model to evaluate is one that it does not wrap
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
            # autocast would keep a bfloat16 copy of each trained weight to the end of the forward, whole
            self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
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
        norm = whole(super()._clip_grad_norm(model))  # type: ignore[no-untyped-call]
        self.taken[-1].gradient_norm = norm
        return norm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained weights of a checkpoint."""
        model: Any = self.model
        weights = trained_weights(model)
        if self.args.should_save:
            Path(str(output_dir)).mkdir(exist_ok=True)
            save_file(weights, Path(str(output_dir), WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = self.model
        load_trained_weights(model, load_file(Path(resume_from_checkpoint, WEIGHTS)))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        model, optimizer, schedule = self._parts()
        state = optimizer_state(model, optimizer)
        if self.args.should_save:
            with Path(output_dir, OPTIMIZER).open("wb") as file:  # an error in writing then says what is wrong
                torch.save({"optimizer": state, "schedule": schedule.state_dict()}, file)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            model, optimizer, schedule = self._parts()
            saved = torch.load(Path(checkpoint, OPTIMIZER), map_location="cpu", weights_only=True)
            load_optimizer_state(model, optimizer, saved["optimizer"])
            schedule.load_state_dict(saved["schedule"])

    def _parts(self) -> tuple[Any, Any, Any]:
        """Return model, optimizer (without accelerate's wrapper) and schedule of a training that runs."""
        wrapped: Any = self.optimizer
        return self.model, wrapped.optimizer, self.lr_scheduler

    def _save_rng_state(self, output_dir: str) -> None:
        """Do nothing: nothing random in a step comes from a generator."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Do nothing, like `_save_rng_state`."""

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


def training_arguments(plan: AdaptPlan, folder: Path) -> TrainingArguments:
    """Return the Trainer's arguments for a plan; checkpoints go into `folder`."""
    recipe, settings = plan.recipe, plan.settings
    cpu = settings.device == "cpu"
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.lr,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        bf16=settings.dtype == "bfloat16",
        gradient_checkpointing_kwargs={"use_reentrant": False},
        seed=recipe.seed,
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and plan.ranks > 1 else None,
        ddp_find_unused_parameters=False,
        save_steps=plan.save_every,
        save_total_limit=2,
        logging_strategy="no",
        logging_nan_inf_filter=False,  # the filter reads every loss, and so waits for the device
        ignore_data_skip=True,
        disable_tqdm=True,
        log_level_replica="error",  # as `quiet_libraries` sets it in the first process
        report_to=[],
    )
