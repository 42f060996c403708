"""Checks attention's kernel on its shipped tiles, where only a GPU can show a fault: masks, neighbours, races.

    PYTHONPATH=.:kernels python -m benchmarks.exactness [--seconds S] [--append FILE]

For each head size and each kind of attention that a model family uses, a packed batch with a sequence in every length
class and around every tile's end is compared with the reference. Then, bit for bit: each sequence alone, the others
while one sequence is NaN, and the same batch 20 times. Without a GPU, set TRITON_INTERPRET=1: a small case runs in
Triton's interpreter.
"""

import itertools
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.reporting.results import append_option, append_row, first_line
from fastvec_kernels import AttentionPlan, attention, attention_reference
from fastvec_kernels._accuracy import compare
from fastvec_kernels._launch import kernels_on_cpu

ON_GPU = torch.cuda.is_available()
LENGTHS = (1, 20, 32, 33, 64, 65, 100, 128, 129, 300, 1100) if ON_GPU else (1, 20, 33)
POISONED = 1  # index of the sequence that is NaN in one of the checks
REPEATS = 20 if ON_GPU else 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Head sizes and a kind of attention; the families that use it."""

    families: str
    head_dim: int
    heads: tuple[int, int]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        rules = " ".join(name if value is True else f"{name} {value}" for name, value in self.options.items())
        return f"d{self.head_dim} {self.heads[0]}/{self.heads[1]} {rules}".strip()


CASES = (
    Case(families="Qwen3 0.6B", head_dim=128, heads=(16, 8)),
    Case(families="Llama 8B, Mistral, Qwen3 8B", head_dim=128, heads=(32, 8)),
    Case(families="Llama 1B", head_dim=64, heads=(32, 8)),
    Case(families="MiniLM-like", head_dim=64, heads=(16, 16)),
    Case(families="Gemma", head_dim=256, heads=(8, 4)),
    Case(families="Qwen3-Embedding", head_dim=128, heads=(16, 8), options={"causal": True}),
    Case(families="Gemma 3, EmbeddingGemma", head_dim=256, heads=(4, 1), options={"window": 64}),
    Case(families="Mistral, Qwen2", head_dim=128, heads=(32, 8), options={"causal": True, "window": 64}),
    Case(families="Gemma 3, causal", head_dim=256, heads=(4, 1), options={"causal": True, "window": 64}),
    Case(families="Gemma 2", head_dim=256, heads=(8, 4), options={"window": 64, "softcap": 50.0}),
    Case(families="gpt-oss", head_dim=64, heads=(64, 8), options={"causal": True, "window": 64, "sinks": True}),
)
SMALL_CASES = (
    Case(families="any", head_dim=32, heads=(4, 2)),
    Case(families="any", head_dim=32, heads=(4, 2), options={"causal": True, "window": 8}),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """`status` is correct, or starts with FAILED."""

    case: str
    check: str
    status: str

    @property
    def failed(self) -> bool:
        return self.status.startswith("FAILED")

    def __str__(self) -> str:
        return f"{self.case:40} {self.check:26} {self.status}"


def checks(case: Case, device: str) -> Iterator[Row]:
    """Yield a row for each check of a case; a kernel that raises is one row."""
    dtype = torch.bfloat16 if ON_GPU else torch.float32  # bfloat16 products are wrong in the interpreter
    torch.manual_seed(0)
    heads = (case.heads[0], case.heads[1], case.heads[1])
    q, k, v = (torch.randn(sum(LENGTHS), n, case.head_dim, device=device, dtype=dtype) for n in heads)
    options = {"scale": case.head_dim**-0.5, **case.options}
    if options.get("sinks"):
        options["sinks"] = torch.randn(case.heads[0], device=device, dtype=dtype)
    plan = AttentionPlan.build(LENGTHS, device)

    def row(check: str, failure: str | None) -> Row:
        return Row(case=case.name, check=check, status="correct" if failure is None else f"FAILED: {failure}")

    try:
        whole = attention(q, k, v, plan, **options)
        yield row("reference", compare((whole,), (attention_reference(q, k, v, plan, **options),))[1])
        yield row("alone as in the batch", _alone(q, k, v, whole, options))
        yield row("a neighbour is NaN", _poisoned(q, k, v, whole, plan, options))
        same = all(torch.equal(attention(q, k, v, plan, **options), whole) for _ in range(REPEATS))
        yield row(f"{REPEATS} times the same", None if same else "the bits differ")
    except Exception as error:  # the other cases are still worth knowing
        yield row("runs", first_line(error))


def _alone(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, whole: torch.Tensor, options: dict[str, Any]
) -> str | None:
    for begin, end in itertools.pairwise(itertools.accumulate(LENGTHS, initial=0)):
        plan = AttentionPlan.build([end - begin], q.device)
        own = attention(q[begin:end], k[begin:end], v[begin:end], plan, **options)
        # alone, a sequence that fits into its window takes the kernel without one, which may round differently
        same = compare((own,), (whole[begin:end],))[1] is None if "window" in options else own.equal(whole[begin:end])
        if not same:
            return f"the sequence of {end - begin} tokens differs"
    return None


def _poisoned(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, whole: torch.Tensor, plan: AttentionPlan, options: dict[str, Any]
) -> str | None:
    begin = sum(LENGTHS[:POISONED])
    inside = slice(begin, begin + LENGTHS[POISONED])
    q, k, v = q.clone(), k.clone(), v.clone()
    for x in (q, k, v):
        x[inside] = torch.nan
    found = attention(q, k, v, plan, **options)
    if not found[inside].isnan().all():
        return "a NaN of its own sequence is missing"
    found[inside] = whole[inside]
    return None if torch.equal(found, whole) else "another sequence changed"


@click.command()
@click.option("--seconds", type=float, default=float("inf"), help="Start no further case after this many seconds.")
@append_option
def main(seconds: float, append: Path | None) -> None:
    """Print a row for each check; the exit code is 1 if one failed."""
    begin, failed = time.monotonic(), False
    with nullcontext() if ON_GPU else kernels_on_cpu(), torch.inference_mode():
        for case in CASES if ON_GPU else SMALL_CASES:
            if time.monotonic() - begin > seconds:
                print(f"{case.name:40} skipped: {seconds:.0f} s are over")
                continue
            for row in checks(case, "cuda" if ON_GPU else "cpu"):
                print(row, flush=True)
                failed = failed or row.failed
                if append is not None:
                    append_row(append, {"benchmark": "exactness", "op": "attention", **asdict(row)})
    sys.exit(failed)


if __name__ == "__main__":
    main()
