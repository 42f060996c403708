"""Embeds a corpus: into one file, or into a folder of shards, by one or several processes."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastvec.corpus.copies import local_inputs
from fastvec.embedding.destination import written_to
from fastvec.embedding.job import embed_file
from fastvec.embedding.measurements import Measurements
from fastvec.embedding.options import EmbedOptions
from fastvec.embedding.plan import EmbedPlan, plan_embed
from fastvec.errors import UsageError
from fastvec.jobs.devices import parse_devices
from fastvec.jobs.processes import in_processes
from fastvec.jobs.ray_data import in_ray
from fastvec.jobs.sharded import Schedule, embed_shards, in_this_process
from fastvec.report import Progress, Report
from fastvec.run_report.embedding import EmbeddingPage
from fastvec.settings import EncoderSettings

if TYPE_CHECKING:  # the encoder is only loaded when there is work to do
    from fastvec.encoder import Encoder


def embed(
    inputs: Any,
    output: str | Path,
    *,
    encoder: "Encoder | EncoderSettings",
    batch_tokens: int | None = None,
    overwrite: bool = False,
    shard: str | None = None,
    shard_rows: int | None = None,
    devices: str | None = None,
    engine: Literal["ray"] | None = None,
    report: str | Path | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    stop_signal: Callable[[], int | None] = lambda: None,
    **options: Any,
) -> Report:
    """Embed the text of each row of `inputs` into one Arrow or Parquet file, or a folder of shards, in order.

    Args:
        inputs: Files, folders and glob patterns, local or in a store as `output` is; `-` for stdin; datasets of the
            hub; and tables of pyarrow, polars, pandas, DuckDB or `datasets`: one of these or a list.
        output: A file that ends in `.arrow` or `.parquet`; a folder, which exists or ends in `/`; or its address.
        encoder: A loaded encoder, or settings, by which the model is loaded when there is work to do.
        batch_tokens: The token budget of a forward pass.
        overwrite: Replace the output of another job.
        shard: `i/N`: only the shards of process i, from 0, of N that divide the job; the last one finishes it.
        shard_rows: About how many rows a shard has.
        devices: `all` GPUs, GPUs by number as `0,2`, or `cpu:4`: each has a process, which loads its own model.
        engine: `ray` embeds shards on the Ray cluster at RAY_ADDRESS, or else on this machine; see docs/scale.md.
        report: An HTML file, which is written when the job is done: what ran, how fast, and what it is like.
        progress: Called after each chunk.
        stop_signal: Called often; once it returns a signal number, the run stops with InterruptedRunError.
        options: Those of `EmbedOptions`: what is embedded of each row, and how it is written.

    The same call again resumes an unfinished output and leaves a finished one unchanged. Raises FastvecError.
    """
    # a loaded encoder has its dtype, and does not take that of earlier work
    settings = encoder if isinstance(encoder, EncoderSettings) else replace(encoder.settings, auto_dtype=False)
    page = None if report is None else EmbeddingPage(report, output)
    with written_to(output) as path, local_inputs(inputs, path, stop_signal) as files:
        plan = plan_embed(files, output, settings=settings, options=EmbedOptions(**options), stop_signal=stop_signal)
        if page is not None:
            page.require_no_input(plan)
            progress = page.measurements.watching(progress)
        done = _embedded(
            plan,
            encoder,
            batch_tokens=batch_tokens,
            shard=shard,
            devices=devices,
            engine=engine,
            shard_rows=shard_rows,
            overwrite=overwrite,
            progress=progress,
            stop_signal=stop_signal,
            measurements=None if page is None else page.measurements,
        )
        if page is not None:
            page.write(plan, done, {"batch tokens": batch_tokens, "shard": shard, "devices": devices, "engine": engine})
    return done


def _embedded(
    plan: EmbedPlan,
    encoder: "Encoder | EncoderSettings",
    *,
    batch_tokens: int | None,
    overwrite: bool,
    shard: str | None,
    shard_rows: int | None,
    devices: str | None,
    engine: str | None,
    progress: Callable[[Progress], None],
    stop_signal: Callable[[], int | None],
    measurements: Measurements | None,
) -> Report:
    """Do what is left to do of a job, whether its output is one file or a folder. Raises FastvecError."""
    if plan.folder is None:
        _require_none(plan.output, {"shard": shard, "shard-rows": shard_rows, "devices": devices, "engine": engine})
        return embed_file(
            plan,
            encoder,
            batch_tokens=batch_tokens,
            overwrite=overwrite,
            progress=progress,
            stop_signal=stop_signal,
            measurements=measurements,
        )
    _require_rows(shard_rows)
    return embed_shards(
        plan,
        plan.folder,
        _schedule(encoder, devices, engine, measurements),
        part=None if shard is None else _part(shard, overwrite=overwrite),
        shard_rows=shard_rows,
        batch_tokens=batch_tokens,
        overwrite=overwrite,
        progress=progress,
        stop_signal=stop_signal,
    )


def _require_none(output: Path, options: Mapping[str, object]) -> None:
    """Raise UsageError if one of the `options` that divide a job is given."""
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"--{name} needs an output in shards: name a folder, such as -o {output.stem}/")


def _require_rows(shard_rows: int | None) -> None:
    """Raise UsageError if shards cannot have so many rows."""
    if shard_rows is not None and (not isinstance(shard_rows, int) or shard_rows < 1):
        raise UsageError(f"shard-rows {shard_rows!r} is out of range: give a number from 1 on")


def _part(given: str, *, overwrite: bool) -> tuple[int, int]:
    """Parse `i/N`. Raises UsageError."""
    match = re.fullmatch(r"(\d+)/(\d+)", given) if isinstance(given, str) else None
    if match is None or int(match[1]) >= int(match[2]):
        raise UsageError(f"shard {given!r} is not known: give i/N for process i of N, from 0/N to N-1/N")
    if overwrite:
        raise UsageError("--overwrite would delete the shards of the other processes: delete the folder first")
    return int(match[1]), int(match[2])


def _schedule(
    encoder: "Encoder | EncoderSettings", devices: str | None, engine: str | None, measurements: Measurements | None
) -> Schedule:
    """Return what embeds the shards. Raises UsageError."""
    settings = encoder if isinstance(encoder, EncoderSettings) else encoder.settings
    if engine is not None:
        return _schedule_in_ray(settings, devices, engine)
    found = None if devices is None else parse_devices(devices)
    if found is None:
        return in_this_process(None if isinstance(encoder, EncoderSettings) else encoder, measurements)
    if found.kind != settings.device:
        raise UsageError(f"--devices {devices} and --device {settings.device} contradict each other: leave one out")
    return in_processes(found.environments)


def _schedule_in_ray(settings: EncoderSettings, devices: str | None, engine: str) -> Schedule:
    if engine != "ray":
        raise UsageError(f"engine {engine!r} is not known: give ray, or leave it out")
    match = re.fullmatch(r"cpu:([1-9]\d*)|all", devices or "all")
    if match is None:
        raise UsageError(
            f"--devices {devices} is not for --engine ray, which uses all GPUs: leave it out or give cpu:4"
        )
    if match[1] and settings.device != "cpu":
        raise UsageError(f"--devices {devices} and --device {settings.device} contradict each other: leave one out")
    return in_ray(int(match[1]) if match[1] else None)
