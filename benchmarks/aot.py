"""The ahead-of-time gate: compiles every shipped kernel configuration for each architecture, without a GPU.

    python -m benchmarks.aot [--quick] [--arch sm_90 …] [--only attention …] [--out DIR]

It calls the public ops inside `compiling_for`, so it compiles exactly what a GPU would run. A kernel fails if it spills
registers, needs more shared memory than the architecture has, writes nothing, or multiplies large 16-bit tiles on
Hopper without the warpgroup instruction. The table has one row per distinct kernel.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from benchmarks.ops.compile_cases import cases
from benchmarks.ops.machine_code import SPILL_EXEMPTIONS, MachineCode, read
from fastvec_kernels._launch import SHARED_MEMORY, compiling_for

OPS = list(dict.fromkeys(case.op for case in cases()))
COLUMNS = (
    ("kernel", 26), ("arch", 6), ("case", 50), ("warps", 5), ("stages", 6), ("registers", 9), ("stack", 5),
    ("spills", 6), ("shared", 7), ("tensor", 6), ("older", 5), ("async", 5), ("bulk", 4), ("16 B", 4), ("tiles", 0),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """The kernels that one case compiled for one architecture, or the error."""

    case: str
    arch: str
    kernels: tuple[MachineCode, ...]
    error: str | None = None


def compile_case(number: int, arch: str) -> Compiled:
    """Compile what case `number` launches on `arch`. TRITON_INTERPRET must not be set in this process."""
    case = cases()[number]
    name, kernels, error = f"{case.op} {case.name}", [], None
    with compiling_for(arch) as compiler:
        try:
            case.call()
        except Exception as raised:  # any exception of the compiler is a result for this kernel
            error = f"{type(raised).__name__}: {' '.join(str(raised).split())[:300]}"
        seen = {compiled.hash: (kernel, compiled) for kernel, compiled in compiler.compiled}
    kernels = [read(kernel, arch, compiled) for kernel, compiled in seen.values()]
    if not kernels and error is None:
        error = "launched no kernel"
    return Compiled(case=name, arch=arch, kernels=tuple(kernels), error=error)


def failures(compiled: Iterable[Compiled]) -> list[str]:
    """Return the failures, one line each."""
    found: dict[str, None] = {}
    for one in compiled:
        if one.error is not None:
            found[f"{one.arch} {one.case}: {one.error}"] = None
        for code in one.kernels:
            for failure in code.failures():
                found.setdefault(f"{code.arch} {code.kernel} ({one.case}; {code.tiles}) {failure}", None)
    return list(found)


def rows_of(compiled: Iterable[Compiled]) -> dict[tuple[str, str], list[str]]:
    """Return a row per distinct kernel, keyed by architecture and hash, with the first case that needs it."""
    rows: dict[tuple[str, str], list[str]] = {}
    for one in compiled:
        for code in one.kernels:
            figures = (
                code.warps, code.stages, code.registers, code.stack_bytes, code.spills, code.shared, code.tensor,
                code.older_tensor, code.async_copies, code.bulk_copies, code.wide,
            )  # fmt: skip
            cells = [code.kernel, code.arch, one.case, *map(str, figures), code.tiles]
            rows.setdefault((code.arch, code.hash), cells)
    return rows


def line(cells: Iterable[str]) -> str:
    padded = (
        cell.ljust(width) if place < 3 or not width else cell.rjust(width)
        for place, (cell, (_, width)) in enumerate(zip(cells, COLUMNS, strict=True))
    )
    return "  ".join(padded).rstrip()


def save(compiled: list[Compiled], out: Path) -> None:
    """Write aot.json with all results and aot.md with the table."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "aot.json").write_text(json.dumps([asdict(one) for one in compiled], indent=1) + "\n")
    head = [name for name, _ in COLUMNS]
    lines = [head, ["---"] * len(head), *rows_of(compiled).values()]
    (out / "aot.md").write_text("".join(f"| {' | '.join(cells)} |\n" for cells in lines))


def verdict(compiled: Iterable[Compiled]) -> int:
    """Print the exemptions and the failures, and return the exit code."""
    refused = failures(compiled)
    for exempt, reason in SPILL_EXEMPTIONS.items():
        print(f"may spill: {' on '.join(exempt)}: {reason}")
    if refused:
        print(f"{len(refused)} failures:", *refused, sep="\n  ")
    return int(bool(refused))


@click.command()
@click.option(
    "--quick", is_flag=True, help="Compile one configuration of each kernel, for sm_90 unless --arch is given."
)
@click.option(
    "--arch",
    "archs",
    multiple=True,
    type=click.Choice(list(SHARED_MEMORY)),
    help="Only this architecture; repeat for more. [default: all]",
)
@click.option(
    "--only", "ops", multiple=True, type=click.Choice(OPS), help="Only this op; repeat for more. [default: all]"
)
@click.option("--jobs", default=os.cpu_count() or 1, show_default="one per core")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for aot.json and aot.md.")
def main(quick: bool, archs: tuple[str, ...], ops: tuple[str, ...], jobs: int, out: Path | None) -> None:
    archs = archs or (("sm_90",) if quick else tuple(SHARED_MEMORY))
    chosen = [
        (number, arch)
        for arch in archs
        for number, case in enumerate(cases())
        if (case.quick or not quick) and (not ops or case.op in ops) and case.arch in (None, arch)
    ]
    os.environ.pop("TRITON_INTERPRET", None)  # the workers must compile, not interpret
    begin = time.monotonic()
    rows: dict[tuple[str, str], list[str]] = {}
    print(line(name for name, _ in COLUMNS))
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        submitted = [pool.submit(compile_case, *one) for one in chosen]
        for done in as_completed(submitted):
            for key, cells in rows_of([done.result()]).items():
                if key not in rows:
                    rows[key] = cells
                    print(line(cells), flush=True)
    compiled = [one.result() for one in submitted]  # in case order, not in order of completion
    print(f"{len(rows)} kernels of {len(chosen)} cases in {time.monotonic() - begin:.0f} s")
    if out is not None:
        save(compiled, out)
    sys.exit(verdict(compiled))


if __name__ == "__main__":
    main()
