"""Reports on jobs: progress while they run, and a report at the end."""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# `padding_saved` compares packing with a plain encoder, which pads each batch of this many texts, in input order, to
# its longest text
PADDED_BATCH = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """The progress of an embedding job. `rows` counts from the input's start, the other counts are of this process.

    `waits` has the seconds that each stage waited for its neighbours, `errors` is the number of texts without a vector
    because of an error.
    """

    rows: int
    total_rows: int
    new_rows: int
    tokens: int
    seconds: float
    waits: dict[str, float]
    errors: int = 0

    @property
    def rows_per_second(self) -> float:
        return self.new_rows / self.seconds if self.seconds > 0 else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        return (self.total_rows - self.rows) / self.rows_per_second if self.new_rows else None

    @property
    def share(self) -> tuple[int, int]:
        """How much is done, of how much."""
        return self.rows, self.total_rows

    def __str__(self) -> str:
        """One line: rows done, errors, rates, time left, and the seconds that each stage waited."""
        done = f"{self.rows:,} of {self.total_rows:,} rows" + (f", {self.errors:,} errors" if self.errors else "")
        rates = f"{self.rows_per_second:,.0f} rows/s, {self.tokens_per_second:,.0f} tokens/s"
        waits = " ".join(f"{stage} {seconds:.0f}s" for stage, seconds in sorted(self.waits.items()))
        return f"{done}, {rates}{_left(self.seconds_left)}" + (f" (waits: {waits})" if waits else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The report of an embedding job. Counts cover the whole output.

    `seconds` and the rates cover this process, from when its model was loaded.
    """

    output: str
    model: str
    device: str
    rows: int
    input_rows: int = 0  # rows of the inputs, if those of the output are passages
    nulls: int = 0
    empty: int = 0
    truncated: int = 0
    repaired: int = 0
    duplicates: int = 0  # texts that equal another one of their chunk, and were not encoded again
    reused: int = 0  # texts with a vector of an earlier output
    errors: int = 0
    tokens: int = 0
    resumed_rows: int = 0
    seconds: float = 0.0
    rows_per_second: float = 0.0
    tokens_per_second: float = 0.0
    padding_saved: float = 0.0
    waits: dict[str, float] = field(default_factory=dict)  # seconds each stage waited for its neighbours
    bottleneck: str = ""  # the stage that worked longest
    peak_memory_bytes: int | None = None
    agreement: dict[str, Any] | None = None  # of quantized vectors with unquantized ones, on the first texts
    torch_ops: tuple[str, ...] = ()  # ops that ran without their kernels, although this device has kernels
    choices: dict[str, Any] | None = None  # how products and attention were computed on a CPU
    already_finished: bool = False
    verified: bool | None = None  # whether the output was read back before it was published; None: an earlier run's
    shards: int = 0  # of an output in shards, those of this process
    missing_shards: int = 0  # that other processes have not finished
    note: str = ""  # a remark about the model

    @property
    def return_code(self) -> int:
        """The exit code: 3 if rows have no vector because of an error, else 0."""
        return 3 if self.errors else 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.already_finished:
            errors = f", {self.errors:,} of them without a vector because of an error" if self.errors else ""
            shards = f" in {_shards(self.shards)}" if self.shards else ""
            return f"{self.output} is already finished: {self.rows:,} rows{shards}{errors}"
        rows = f"{self.rows:,} passages of {self.input_rows:,} rows" if self.input_rows else f"{self.rows:,} rows"
        shards = f" in {_shards(self.shards)}" if self.shards else ""
        parts = [f"{rows}{shards} to {self.output} in {self.seconds:.1f} s"]
        if self.resumed_rows:
            parts.append(f"{self.resumed_rows:,} of them from an earlier run")
        parts.append(f"{self.rows_per_second:,.0f} rows/s, {self.tokens_per_second:,.0f} tokens/s")
        counted = ("nulls", "empty", "truncated", "repaired", "duplicates", "reused", "errors")
        parts += [f"{getattr(self, name):,} {name}" for name in counted if getattr(self, name)]
        if self.verified:
            parts.append("verified")
        if self.missing_shards:
            parts.append(f"not finished yet: {_shards(self.missing_shards)} of other processes")
        if self.bottleneck:
            parts.append(f"bottleneck: {self.bottleneck}")
        if self.torch_ops:
            parts.append(f"without kernels: {', '.join(self.torch_ops)}")
        return "; ".join(parts) + (f"\n{self.note}" if self.note else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptProgress:
    """The progress of a training run. `new_steps`, `tokens` and `seconds` cover this process.

    `measured` has the latest held-out loss and Spearman correlation.
    """

    step: int
    steps: int
    new_steps: int
    tokens: int
    seconds: float
    loss: float
    measured: dict[str, float]

    @property
    def share(self) -> tuple[int, int]:
        """How much is done, of how much."""
        return self.step, self.steps

    def __str__(self) -> str:
        """One line: steps done, loss, the latest measurements, rate and time left."""
        per_step = self.seconds / self.new_steps if self.new_steps else 0.0
        measures = "".join(f", {name.replace('_', ' ')} {value:.3f}" for name, value in self.measured.items())
        rates = f"{self.tokens / self.seconds:,.0f} tokens/s" if self.seconds else "0 tokens/s"
        left = _left((self.steps - self.step) * per_step)
        return f"step {self.step:,} of {self.steps:,}, loss {self.loss:.3f}{measures}, {rates}{left}"


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptReport:
    """The report of an adaptation. `seconds` and the counts of rows cover this process.

    `loss_first` and `loss_last` are means over ten steps, or over a third of all steps if the run has fewer than 30.
    """

    objective: str
    output: str
    steps: int
    tokens: int = 0
    seconds: float = 0.0
    loss_first: float | None = None
    loss_last: float | None = None
    held_out_before: float | None = None
    held_out_after: float | None = None
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    cosine_before: float | None = None
    cosine_after: float | None = None
    spearman_before: float | None = None
    spearman_after: float | None = None
    resumed_steps: int = 0
    rows: int = 0
    nulls: int = 0
    repaired: int = 0
    peak_memory_bytes: int | None = None
    already_finished: bool = False

    @property
    def return_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.already_finished:
            return f"{self.output} is already finished: {self.steps:,} steps of {self.objective}"
        parts = [f"{self.steps:,} steps of {self.objective} to {self.output} in {self.seconds:.0f} s"]
        if self.resumed_steps:
            parts.append(f"{self.resumed_steps:,} of them from an earlier run")
        for name, before, after in (
            ("loss", self.loss_first, self.loss_last),
            ("held-out loss", self.held_out_before, self.held_out_after),
            ("accuracy", self.accuracy_before, self.accuracy_after),
            ("cosine", self.cosine_before, self.cosine_after),
            ("Spearman", self.spearman_before, self.spearman_after),
        ):
            if before is not None and after is not None:
                parts.append(f"{name} {before:.3f} to {after:.3f}")
        parts += [f"{getattr(self, name):,} {name}" for name in ("nulls", "repaired") if getattr(self, name)]
        return "; ".join(parts)


def _shards(number: int) -> str:
    return f"{number:,} shard{'s' if number > 1 else ''}"


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f", {hours}:{minutes:02}:{rest:02} left"


def padded_tokens(lengths: npt.NDArray[np.integer]) -> int:
    """Count the tokens of texts of `lengths` [n], in input order, if padded in batches of `PADDED_BATCH` texts."""
    if len(lengths) == 0:
        return 0
    begins = np.arange(0, len(lengths), PADDED_BATCH)
    sizes = np.diff(np.append(begins, len(lengths)))
    return int((np.maximum.reduceat(lengths, begins) * sizes).sum())


def peak_memory_bytes() -> int | None:
    """Return the peak resident memory of this process; None on Windows, which has no `getrusage`."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: its getrusage returns the parent process's peak if that was larger
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):  # missing on some sandboxes' kernels
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # other systems count in KiB
