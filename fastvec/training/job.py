"""Runs an adaptation: plans it, finds where an earlier run stopped, trains, evaluates and saves.

The Trainer runs the steps (`trainer`), and a task defines what a step does (`objectives`). The job works in a folder
beside the output (`work_folder`), saves the model there (`saved_folder`), and renames it to the output when it is
complete.
"""

import logging
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvec.distributed.ranks import join_ranks, on_rank_0
from fastvec.errors import InterruptedRunError, ModelError
from fastvec.report import AdaptProgress, AdaptReport, peak_memory_bytes
from fastvec.system.durable_files import translated_library_errors
from fastvec.training.plan import AdaptPlan, plan_adapt
from fastvec.training.work_folder import finished, open_work_folder, part_of, publish, tidy, whole_results

if TYPE_CHECKING:  # torch is only imported when there is work to do
    from fastvec.training.learner import Learner

logger = logging.getLogger(__name__)


def adapt(
    *,
    objective: str,
    model: str | Path | None,
    data: Sequence[str | Path],
    output: str | Path,
    adapters: Sequence[str | Path] = (),
    revision: str | None = None,
    bidirectional: bool | None = None,
    eos: bool | None = None,
    column: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    eval_pairs: str | Path | None = None,
    eval_every: int | None = None,
    save_every: int | None = None,
    merge: bool = False,
    fsdp: bool = False,
    overwrite: bool = False,
    progress: Callable[[AdaptProgress], None] = lambda _: None,
    stop_signal: Callable[[], int | None] = lambda: None,
    **options: Any,
) -> AdaptReport:
    """Train a decoder into a text encoder by one objective, and save it as the folder `output`.

    `options` are those of `recipe.Recipe`; None means the objective's default. `fsdp` splits the model over torchrun's
    processes. The same call resumes an interrupted run and leaves a finished output unchanged. `progress` is called
    every few steps, and `stop_signal` too, or after each; if it returns a signal, the run stops and can be resumed.

    Raises FastvecError: the subclass says what went wrong.
    """
    plan = plan_adapt(
        objective=objective,
        model=model,
        data=data,
        output=Path(output),
        adapters=adapters,
        revision=revision,
        bidirectional=bidirectional,
        eos=eos,
        column=column,
        device=device,
        dtype=dtype,
        eval_pairs=None if eval_pairs is None else Path(eval_pairs),
        eval_every=eval_every,
        save_every=save_every,
        merge=merge,
        fsdp=fsdp,
        **options,
    )
    join_ranks(plan.settings.device)
    made = on_rank_0(lambda: finished(plan.output, plan.fingerprint, overwrite=overwrite))
    if made is not None:
        on_rank_0(lambda: tidy(plan.output))
        return _report(plan, {**made, "seconds": 0.0, "already_finished": True})
    place = open_work_folder(plan.output, plan.fingerprint, overwrite=overwrite) if plan.rank == 0 else nullcontext()
    with place, translated_library_errors(part_of(plan.output)):
        results = on_rank_0(lambda: whole_results(plan.output)) or _run(plan, progress, stop_signal)
        on_rank_0(lambda: publish(plan.output))
    return _report(plan, results)


def _run(
    plan: AdaptPlan, progress: Callable[[AdaptProgress], None], stop_signal: Callable[[], int | None]
) -> Mapping[str, Any]:
    """Train to the last step in the work folder, save the model there, and return the results."""
    from fastvec.system.libraries import quiet_libraries
    from fastvec.training.learner import Learner
    from fastvec.training.monitor import Monitor
    from fastvec.training.saved_folder import Adaptation, save_adaptation

    folder = part_of(plan.output)
    plan.corpora[0].log_text_column()
    with quiet_libraries():
        learner = Learner(plan, folder)
        with closing(Monitor(learner, folder, progress, stop_signal)) as monitor:
            step = _train(plan, learner, folder)
            if step < plan.recipe.steps:
                number = stop_signal() or signal.SIGTERM
                raise InterruptedRunError(
                    f"stopped by {signal.Signals(number).name} at step {step:,} of {plan.recipe.steps:,}: "
                    "run the same command again to resume",
                    number,
                )
            monitor.finish()
        results = monitor.results()
        model, dense = learner.take_trained()
        if plan.rank == 0:
            done = Adaptation(
                model=model,
                tokenizer=learner.tokenizer,
                settings=replace(plan.settings, max_length=plan.max_length),
                recipe=plan.recipe,
                fingerprint=plan.fingerprint,
                results=results,
                merge=plan.merge,
                dense=dense,
            )
            save_adaptation(folder, done)
    read = sum((stream.counts for stream in learner.streams), start=Counter[str]())
    return {**results, **read, "resumed_steps": monitor.resumed_steps}


def _train(plan: AdaptPlan, learner: "Learner", folder: Path) -> int:
    """Take the steps that are left and return the last one. Raises ModelError if the device runs out of memory."""
    import torch

    try:
        return learner.trainer.resume(folder)
    except torch.OutOfMemoryError:
        at_once = plan.recipe.grad_cache or plan.recipe.batch_size
        raise ModelError(
            f"{plan.settings.device} ran out of memory with {at_once} texts at a time: give --grad-cache "
            f"{max(1, at_once // 2)}, which does not change the result; the command resumes from the last checkpoint, "
            "if any"
        ) from None


def _report(plan: AdaptPlan, results: Mapping[str, Any]) -> AdaptReport:
    known = {name: value for name, value in results.items() if name in AdaptReport.__dataclass_fields__}
    return AdaptReport(
        objective=plan.recipe.objective,
        output=str(plan.output),
        steps=plan.recipe.steps,
        peak_memory_bytes=peak_memory_bytes(),
        **known,
    )
