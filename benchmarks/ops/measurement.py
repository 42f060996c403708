"""Turns workloads into result rows: checks each implementation, then times it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatch

import torch

from benchmarks.ops.attention import attention_workload, rope_attention_workload
from benchmarks.ops.roofline import Ceilings, sets_of_inputs
from benchmarks.ops.shapes import DIRECTIONS, Shape
from benchmarks.ops.timing import measure
from benchmarks.ops.wide import (
    dropout_workload,
    gated_linear_workload,
    pooling_workload,
    quantize_workload,
    rms_norm_workload,
    rope_workload,
    swiglu_workload,
)
from benchmarks.ops.workload import Expected, Implementation, Run, Unavailable, Workload, expect
from benchmarks.reporting.results import Row, first_line
from fastvec_kernels._accuracy import Direction, compare

FASTVEC = "fastvec"


WORKLOAD_BUILDERS: dict[str, Callable[[Shape, str, torch.dtype], Workload]] = {
    "attention": attention_workload,
    "pooling": pooling_workload,
    "rms_norm": rms_norm_workload,
    "rope": rope_workload,
    "rope_attention": rope_attention_workload,
    "swiglu": swiglu_workload,
    "gated_linear": gated_linear_workload,
    "dropout": dropout_workload,
    "quantize": quantize_workload,
}


def rows_of(
    workload: Workload,
    ceilings: Ceilings | None,
    *,
    directions: tuple[Direction, ...] = DIRECTIONS,
    implementations: str = "*",
    timed: bool = True,
    expected: Expected | None = None,
) -> Iterator[Row]:
    """Yield a row for each implementation whose name matches the glob `implementations`, and each of its directions.

    Without `timed` results are only checked. An implementation that fails yields a row that says so. `expected` is the
    reference's result if the caller has it already.
    """
    directions = tuple(direction for direction in directions if direction in workload.bytes)
    expected = expected or expect(workload, workload.inputs())
    for name, make in workload.implementations.items():
        if not fnmatch(name, implementations):
            continue
        try:
            implementation = make()
        except Unavailable as reason:
            yield from (_row(workload, name, direction, ceilings, status=str(reason)) for direction in directions)
            continue
        for direction in directions:
            try:
                yield _measured(workload, name, implementation, expected, direction, ceilings, timed)
            except torch.cuda.OutOfMemoryError:
                yield _row(workload, name, direction, ceilings, status="out of memory")
            except Exception as error:  # whatever a library raises, measure the others
                status = f"{'FAILED' if name == FASTVEC else 'cannot'}: {first_line(error)}"
                yield _row(workload, name, direction, ceilings, status=status)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _measured(
    workload: Workload,
    name: str,
    implementation: Implementation,
    expected: Expected,
    direction: Direction,
    ceilings: Ceilings | None,
    timed: bool,
) -> Row:
    run = Run(implementation, workload, expected.inputs, expected.upstream)
    if direction == "backward":
        run.prepare_backward()
    wanted = expected.outputs if direction == "forward" else expected.gradients
    error, failure = compare(run.result(direction), wanted, direction, implementation.rounds_to)
    if failure is not None:
        return _row(workload, name, direction, ceilings, status=f"FAILED: {failure}", error=error)
    if not timed:
        return _row(workload, name, direction, ceilings, status="correct", error=error)
    runs = [run]
    for _ in range(sets_of_inputs(*expected.inputs) - 1):
        runs.append(Run(implementation, workload, workload.inputs(), expected.upstream))
        if direction == "backward":
            runs[-1].prepare_backward()
    timing = measure(Run.forward if direction == "forward" else Run.backward, runs)
    return replace(_row(workload, name, direction, ceilings, status="ok", error=error), timing=timing)


def _row(
    workload: Workload,
    name: str,
    direction: Direction,
    ceilings: Ceilings | None,
    *,
    status: str,
    error: float | None = None,
) -> Row:
    flops = None if workload.flops is None else workload.flops[direction]
    ceiling = None
    if ceilings is not None:
        ceiling = ceilings.copy if flops is None else ceilings.matrix
    return Row(
        op=workload.op,
        group=workload.shape.group,
        shape=workload.shape.name,
        implementation=name,
        direction=direction,
        status=status,
        error=error,
        bytes=workload.bytes[direction],
        flops=flops,
        ceiling=ceiling,
    )
