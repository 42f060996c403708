"""The stages of `benchmarks.gpu`: which commands run, in which order, for how long, and what they decide.

Stages are in the order of their worth: whether the kernels are right comes first. What has never run on a GPU and may
hang is last.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from fastvec_kernels._launch import architecture

# benchmarks.kernels' names of ops, and the ops that a failed check replaces; attention has a check of its own
OPS = {
    "rms_norm": "rms_norm", "rope": "rope", "rope_attention": "rope_attention", "swiglu": "swiglu",
    "gated_linear": "gated_linear", "pooling": "pool", "quantize": "quantize_rows",
}  # fmt: skip
# attention's shapes, the most important first: the time may not suffice for all
ATTENTION_SHAPES = (
    "d128 16/16 *", "d128 32/8 *", "d64 16/16 512", "d64 16/16 2048", "d64 16/16 long-tail", "d256 16/8 512",
    "d256 16/8 2048", "d64 16/16 short",
)  # fmt: skip
PYTEST = "pytest -q -W default -p no:cacheprovider"  # with other library versions than the tested ones, libraries warn


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """The words after `python -m`; `under` is a program that runs Python, `decides` the op that a failure replaces."""

    words: tuple[str, ...]
    under: tuple[str, ...] = ()
    decides: str | None = None

    def line(self) -> list[str]:
        return [*self.under, sys.executable, "-m", *self.words]

    def __str__(self) -> str:
        return shlex.join([*self.under, *self.words[:4]])


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    name: str
    call: int
    seconds: float  # time limit
    commands: tuple[Command, ...]
    side_by_side: bool = False  # timings need the GPU alone; compiling and checking do not


def stages(results: Path, folder: Path, corpus: Path, *, smoke: bool) -> list[Stage]:
    """Return the stages of both calls; `folder` is for files that are not results, `smoke` makes everything small."""
    arch = (architecture(torch.device("cuda")) if torch.cuda.is_available() else None) or "sm_90"
    cores = os.cpu_count() or 1
    values = {
        "append": shlex.join(["--append", str(results)]),
        "trace": shlex.quote(str(results.with_name("trace.json.gz"))),
        "model": shlex.quote(str(folder / "model")),
        "corpus": shlex.quote(str(corpus)),
        "arch": arch,
        "jobs": str(max(1, cores - 2)),
        "workers": str(min(14, cores)),
        "shapes": shlex.join([word for shape in ATTENTION_SHAPES for word in ("--shapes", shape)]),
    }
    found = []
    for name, call, seconds, lines in _first_call(smoke) + _second_call(smoke):
        commands = tuple(_command(line, values) for line in lines)
        found.append(
            Stage(
                name=name,
                call=call,
                seconds=seconds,
                commands=commands,
                side_by_side=name in ("ceilings", "right"),
            )
        )
    return found


def _command(line: str, values: dict[str, str]) -> Command:
    """Read a command: `op: words` decides `op`, and `program | words` runs Python under a program."""
    decides, _, rest = line.rpartition(": ")
    under, _, words = rest.rpartition(" | ")
    return Command(
        words=tuple(shlex.split(words.format(**values))), under=tuple(shlex.split(under)), decides=decides or None
    )


Lines = list[tuple[str, int, float, list[str]]]  # name, call, seconds, commands


def _first_call(smoke: bool) -> Lines:
    checked = "--check --implementations fastvec --seconds 20 {append}"
    both_passes = "benchmarks.kernels attention " + ("" if smoke else "--shapes '* short' ") + checked
    right = [
        "attention: benchmarks.exactness --seconds 25 {append}",
        *(f"{op}: benchmarks.kernels {name} {checked}" for name, op in OPS.items()),
        both_passes,
        "pytest -q -W default tests/decoders/test_on_kernels.py",
    ]
    first = [
        "benchmarks.ceilings --seconds 40 {append}",
        "benchmarks.aot --arch {arch} --jobs {jobs}" + " --quick --only swiglu" * smoke,
    ]
    if smoke:
        return [
            ("ceilings", 1, 120, [*first, "benchmarks.engines.models {model} 25M"]),
            ("right", 1, 400, right),
            ("forward", 1, 200, ["benchmarks.forward --shape tiny --lengths 20 --budgets 256 {append}"]),
            ("profile", 1, 100, ["benchmarks.profiling --shape tiny --budget 256 --trace {trace} {append}"]),
            ("embed", 1, 200, [_embed("25M --rows 20 --dtype float32", "wiki", "'sentence-transformers'")]),
            ("attention", 1, 100, ["benchmarks.kernels attention --check {append}"]),
        ]
    usual = "--lengths '128 512 2048 20 long-tail' --budgets '32768 8192'"
    wide = "--lengths '512 128 2048' --budgets 32768 --only fastvec --only 'fastvec, fp8'"
    timed = "benchmarks.kernels attention --implementations '[!Fr]*' --seconds 40 {shapes} {append}"
    return [
        ("ceilings", 1, 50, first),
        ("right", 1, 65, right),
        (
            "forward",
            1,
            75,
            [
                f"benchmarks.forward --shape 0.6B {usual} --seconds 40 {{append}}",
                f"benchmarks.forward --shape 8B {wide} --seconds 12 {{append}}",
            ],
        ),
        ("profile", 1, 25, ["benchmarks.profiling --shape 0.6B --trace {trace} {append}"]),
        ("embed", 1, 120, [_embed("0.6B --seconds 80 --limit 50", "wiki", "sentence-transformers")]),
        ("attention", 1, 55, [timed]),
        (
            "tuning",
            1,
            40,
            [
                "benchmarks.kernels gated_linear --implementations '[!r]*' --seconds 6 {append}",
                "benchmarks.kernels attention --tune --seconds 20 {append}",
            ],
        ),
    ]


def _second_call(smoke: bool) -> Lines:
    specialized = f"{PYTEST} tests/kernels/test_attention_specialized.py"
    recovery = "benchmarks.recovery {corpus} --model {model} {append}"
    adapt = "benchmarks.adapt {model} --data {corpus} --column text --rounds 1 --steps 2"
    if smoke:
        return [
            ("specialized", 2, 200, [f"{specialized} -k nan"]),
            ("recovery", 2, 200, [recovery]),
            ("tests", 2, 200, [f"{PYTEST} tests/kernels/test_swiglu.py -n 2 -k triton"]),
            ("ops", 2, 200, ["benchmarks.kernels swiglu --check {append}"]),
            ("adapt", 2, 300, [f"{adapt} --batch-size 4 --max-length 32 --dtype float32"]),
        ]
    saved = "benchmarks.engines.models {model} 0.6B"
    timed = "--seconds 2 --implementations '[!r]*' {append}"
    return [
        ("embed short", 2, 90, [_embed("0.6B --seconds 70 --limit 40", "short", "sentence-transformers")]),
        ("recovery", 2, 45, [saved, f"{recovery} --rows 3000"]),
        ("tests", 2, 60, [f"{PYTEST} -n {{workers}} tests/kernels -k 'triton and not specialized'"]),
        ("adapt", 2, 35, [saved, f"{adapt} --batch-size 128"]),
        ("ops", 2, 40, [f"benchmarks.kernels {name} {timed}" for name in OPS]),
        ("specialized", 2, 30, [f"{specialized} -k triton"]),
    ]


def _embed(shape: str, mix: str, *others: str) -> str:
    only = " ".join(f"--only {name}" for name in ("fastvec", *others))
    return f"benchmarks.embed {{corpus}} --shape {shape} --mix {mix} {only} {{append}}"
