"""Monitors training: records the loss of every step, evaluates at intervals, reports progress, stops on a signal."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fastvec.errors import ModelError
from fastvec.report import AdaptProgress
from fastvec.training.learner import Learner
from fastvec.training.metrics import Metrics
from fastvec.training.trainer import newest_checkpoint

LOOK_EVERY = 10  # losses of this many steps are fetched from the device together
SLOW_STEP = 0.5  # seconds, from which on ranks agree after each step on whether to stop: torchrun waits for 30 s
REPORTED = {  # measure: prefix of its `_before` and `_after` fields in the report
    "held_out_loss": "held_out",
    "held_out_accuracy": "accuracy",
    "held_out_cosine": "cosine",
    "spearman": "spearman",
}
SUMMARY_STEPS = 10  # averaged for the first and the last loss; a run of fewer than 30 steps averages a third of them


class Monitor(TrainerCallback):
    """A callback of a learner's Trainer. Only rank 0 records; all ranks agree on whether to stop, at the same steps."""

    def __init__(
        self,
        learner: Learner,
        folder: Path,
        progress: Callable[[AdaptProgress], None],
        stop_signal: Callable[[], int | None],
    ) -> None:
        self._learner, self._plan = learner, learner.plan
        self._progress, self._stop_signal = progress, stop_signal
        checkpoint = newest_checkpoint(folder)
        self.resumed_steps = 0 if checkpoint is None else checkpoint[1]
        self._pairs = None if self._plan.pairs is None else self._plan.pairs.digest
        first = self._plan.rank == 0
        self._metrics = Metrics(folder, step=self.resumed_steps, pairs=self._pairs) if first else None
        self._started = self._looked = time.perf_counter()
        self._is_slow = True
        self._new_tokens = 0
        learner.trainer.add_callback(self)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # a run that resumes takes the interval of its checkpoint, and --save-every may differ
        state.save_steps = int(args.save_steps)
        if state.global_step == 0:
            self._measure(0)
        self._started = self._looked = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        step, plan = state.global_step, self._plan
        measure = step % plan.eval_every == 0 and step < plan.recipe.steps
        looks = step % LOOK_EVERY == 0 or measure or step % plan.save_every == 0 or step == plan.recipe.steps
        if plan.ranks == 1 or looks or self._is_slow:
            stop = self._agreed(self._stop_signal() is not None)
            if looks or stop:
                self._look()
            if stop:
                control.should_save = control.should_training_stop = True
        if looks:
            now = time.perf_counter()
            self._is_slow, self._looked = self._agreed(now - self._looked > LOOK_EVERY * SLOW_STEP), now
        if measure:
            self._measure(step)

    def finish(self) -> None:
        """Evaluate after the last step and draw the curves."""
        self._measure(self._plan.recipe.steps)
        if self._metrics is not None:
            self._metrics.draw()

    def close(self) -> None:
        """Close the metrics: a thread of TensorBoard would write into a folder that is renamed or removed."""
        if self._metrics is not None:
            self._metrics.close()

    def results(self) -> dict[str, Any]:
        """Return the report's token count, seconds, losses and measures; empty on all ranks but the first."""
        if self._metrics is None:
            return {}
        losses = [value for _, value in self._metrics.values("loss")]
        few = max(1, min(SUMMARY_STEPS, len(losses) // 3))
        results: dict[str, Any] = {
            "tokens": sum(int(value) for _, value in self._metrics.values("tokens")),
            "seconds": time.perf_counter() - self._started,
            "loss_first": _mean(losses[:few]),
            "loss_last": _mean(losses[-few:]),
        }
        for name, key in REPORTED.items():
            points = dict(self._metrics.values(name))
            for when, step in (("before", 0), ("after", self._plan.recipe.steps)):
                if step in points:
                    results[f"{key}_{when}"] = points[step]
        return results

    def _look(self) -> None:
        """Fetch the losses of the steps since the last call, averaged over ranks, and record them.

        Raises ModelError if a loss or a gradient norm is not finite.
        """
        taken, self._learner.trainer.taken = self._learner.trainer.taken, []
        if not taken:
            return
        losses = torch.stack([one.loss.float() for one in taken])
        if self._plan.ranks > 1:
            dist.all_reduce(losses)
            losses /= self._plan.ranks
        norms = torch.stack(
            [torch.as_tensor(one.gradient_norm, dtype=torch.float32).to(losses.device) for one in taken]
        )
        rows = [
            {
                "step": one.step,
                "loss": loss,
                "learning_rate": one.learning_rate,
                "gradient_norm": norm,
                "tokens": one.tokens,
            }
            for one, loss, norm in zip(taken, losses.tolist(), norms.tolist(), strict=True)
        ]
        for row in rows:
            _require_finite("loss", row["loss"], row["step"])
            # gradient clipping scaled the gradients by the norm, so the weights are not finite either
            _require_finite("gradient norm", row["gradient_norm"], row["step"])
        self._new_tokens += sum(one.tokens for one in taken)
        if self._metrics is not None:
            self._metrics.add(rows)
            self._show(rows[-1]["step"], rows[-1]["loss"])

    def _measure(self, step: int) -> None:
        """Evaluate after `step`, unless an earlier run did, and record it.

        The first rank evaluates; if the model is split over the ranks, all of them do, on the same data.
        """
        due = self._metrics is not None and not self._measured_at(step)
        if self._plan.fsdp:
            due = self._agreed(due)
        if not due:
            return
        measured = self._learner.measure()
        _require_finite("held-out loss", measured.get("held_out_loss", 0.0), step)
        # the correlation is NaN if all cosines are equal, and JSON has no NaN
        row: dict[str, Any] = {name: x for name, x in measured.items() if math.isfinite(x)}
        if self._pairs is not None:
            row["pairs"] = self._pairs
        if row and self._metrics is not None:
            self._metrics.add([{"step": step, **row}])

    def _measured_at(self, step: int) -> bool:
        return self._metrics is not None and any(
            row["step"] == step and "loss" not in row and row.get("pairs") == self._pairs for row in self._metrics.rows
        )

    def _show(self, step: int, loss: float) -> None:
        curves = self._metrics
        latest = {} if curves is None else {name: curves.values(name)[-1:] for name in ("held_out_loss", "spearman")}
        self._progress(
            AdaptProgress(
                step=step,
                steps=self._plan.recipe.steps,
                new_steps=step - self.resumed_steps,
                tokens=self._new_tokens,
                seconds=time.perf_counter() - self._started,
                loss=loss,
                measured={name: points[0][1] for name, points in latest.items() if points},
            )
        )

    def _agreed(self, own: bool) -> bool:
        """Return whether `own` is true on any rank."""
        if self._plan.ranks == 1:
            return own
        flag = torch.tensor(float(own), device=self._learner.device)
        dist.all_reduce(flag)
        return bool(flag.item() > 0)


def _require_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise ModelError(
            f"the {what} is {value} at step {step}: lower --lr or use --dtype float32, and start over with --overwrite"
        )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
