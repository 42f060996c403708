"""Compares training steps of `fastvec adapt` with plain transformers, on the same batches in one run.

    PYTHONPATH=.:kernels python -m benchmarks.adapt MODEL --data sentences.parquet

`fastvec` runs the step of `fastvec adapt`, including its Trainer: packed batches, and logits for masked tokens only.
`plain` is a typical implementation with transformers and peft: padding to the longest sequence, SDPA, a bidirectional
mask, logits for every token, AdamW. Both train a LoRA adapter with the paper's rank, alpha and dropout. Rounds
alternate, and the ratio is the median over rounds.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM

from benchmarks.engines.device_timing import wait
from fastvec.system.libraries import quiet_libraries
from fastvec.training.learner import Learner, lora_targets
from fastvec.training.objectives.task import Batch
from fastvec.training.plan import plan_adapt

MAX_GRAD_NORM = 1.0


@click.command()
@click.argument("model")
@click.option("--data", required=True)
@click.option("--column")
@click.option("--objective", type=click.Choice(["mntp", "simcse"]), default="simcse", show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--max-length", default=128, show_default=True)
@click.option("--steps", default=4, show_default=True, help="Steps per round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="bfloat16", show_default=True)
def main(
    model: str, data: str, column: str | None, objective: str, batch_size: int, max_length: int, **run: Any
) -> None:
    """Time both, and print tokens/s and the ratio of fastvec to plain transformers."""
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        plan = plan_adapt(
            objective=objective,
            model=model,
            data=[data],
            output=Path(folder, "out"),
            adapters=(),
            revision=None,
            column=column,
            device="auto",
            dtype=run["dtype"],
            eval_pairs=None,
            eval_every=None,
            save_every=10**6,
            merge=False,
            steps=10**6,
            batch_size=batch_size,
            max_length=max_length,
        )
        learner = Learner(plan, Path(folder))
        ours = _fastvec(learner)
        theirs = _plain(learner, objective)
        batches = iter(learner.batches)
        rates: dict[str, list[float]] = {"fastvec": [], "plain": []}
        for index in range(run["rounds"] + 1):  # the first round is a warm-up
            chosen = [next(batches) for _ in range(run["steps"])]
            tokens = sum(learner.task.tokens(batch) for batch in chosen) * (2 if objective == "simcse" else 1)
            for name, step in (("fastvec", ours), ("plain", theirs)):
                wait()
                started = time.perf_counter()
                for batch in chosen:
                    step(batch)
                wait()
                if index:
                    rates[name].append(tokens / (time.perf_counter() - started))
    for name, values in rates.items():
        print(f"{name:8} {statistics.median(values):10,.0f} tokens/s")
    ratios = [own / other for own, other in zip(rates["fastvec"], rates["plain"], strict=True)]
    print(f"ratio    {statistics.median(ratios):10.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")


def _fastvec(learner: Learner) -> Callable[[Batch[Any]], None]:
    """Return a function that runs one step of the job's own Trainer."""
    trainer = learner.trainer
    model, _ = trainer._prepare_for_training(10**6, None, None)  # type: ignore[no-untyped-call]

    def step(batch: Batch[Any]) -> None:
        trainer.training_step(model, batch)
        trainer._clip_grad_norm(model)
        trainer.optimizer.step()  # type: ignore[union-attr]
        model.zero_grad()

    return step


def _plain(learner: Learner, objective: str) -> Callable[[Batch[Any]], None]:
    recipe, settings = learner.plan.recipe, learner.plan.settings
    dtype = getattr(torch, settings.dtype)
    load: Any = AutoModelForCausalLM if objective == "mntp" else AutoModel
    base = load.from_pretrained(settings.checkpoint.base, dtype=dtype, attn_implementation="sdpa").to(learner.device)
    base.config.is_causal = False
    base.config.attention_dropout = recipe.attention_dropout
    for module in base.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = recipe.attention_dropout
    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=lora_targets(base))
    tuned = get_peft_model(base, config).train()
    weights = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.lr, weight_decay=0.0)
    loss_of = _mntp_loss if objective == "mntp" else _simcse_loss

    def step(batch: Batch[Any]) -> None:
        with torch.autocast(learner.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = loss_of(tuned, learner, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _padded(sequences: Sequence[Any], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and the attention mask, [n, longest] each."""
    longest = max(map(len, sequences))
    ids = np.zeros((len(sequences), longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def _mntp_loss(model: Any, learner: Learner, batch: Batch[Any]) -> torch.Tensor:
    """Return the cross entropy over masked tokens; logits are computed for every token."""
    task: Any = learner.task
    hidden = [task._hidden(ids, batch.step, number) for number, ids in enumerate(batch.examples)]
    ids, mask = _padded([one.ids for one in hidden], learner.device)
    labels = torch.full_like(ids, -100)
    for row, one in enumerate(hidden):
        labels[row, torch.from_numpy(one.places)] = torch.from_numpy(one.labels.astype(np.int64)).to(ids.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


def _simcse_loss(model: Any, learner: Learner, batch: Batch[Any]) -> torch.Tensor:
    texts = [group.query for group in batch.examples] * 2
    ids, mask = _padded([text.ids for text in texts], learner.device)
    states = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    places = torch.arange(ids.shape[1], device=ids.device)
    spans = torch.tensor([text.span for text in texts], device=ids.device)
    pooled = ((places >= spans[:, :1]) & (places < spans[:, 1:]))[..., None].to(states.dtype)
    vectors = F.normalize(((states * pooled).sum(dim=1) / pooled.sum(dim=1)).float(), dim=-1)
    first, second = vectors.chunk(2)
    return F.cross_entropy(20 * first @ second.T, torch.arange(len(first), device=ids.device))


if __name__ == "__main__":
    main()
