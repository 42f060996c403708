"""Run all checks of `fastvec doctor`."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from fastvec.doctor import environment, storage, versions
from fastvec.doctor.isolated import LIMIT_SECONDS, run_isolated
from fastvec.doctor.report import Check, Diagnosis, Outcome, anonymous
from fastvec.errors import FastvecError, one_line

# by name, in the order of the report, what a process of its own does; without torch, the others are not run
ISOLATED = {
    "torch": "fastvec.doctor.devices:check_torch",
    "processor": "fastvec.doctor.devices:check_processor",
    "gpu": "fastvec.doctor.devices:check_gpus",
    "triton": "fastvec.doctor.compiler:check_compiler",
    "kernels": "fastvec.doctor.kernels:check_kernels",
    "vectors": "fastvec.doctor.batch:check_vectors",
    "job": "fastvec.doctor.batch:check_job",
}


def diagnose(
    output: str | Path = ".", *, isolated: Mapping[str, str] = ISOLATED, limit_seconds: float = LIMIT_SECONDS
) -> Diagnosis:
    """Check whether this machine can run fastvec, and write an output to `output`, a file or folder.

    `isolated` are the checks that run in a process of their own, by name, as `module:function`; all of them together
    may take `limit_seconds`.
    """
    checks: dict[str, Callable[[], Outcome]] = {
        "python": versions.check_python,
        "packages": versions.check_packages,
        "extras": versions.check_extras,
        "memory": environment.check_memory,
        "open files": environment.check_open_files,
        "hub": environment.check_hub,
        "output": partial(storage.check_output, output),
        "temporary": storage.check_temporary,
        "spool": storage.check_spool,
        "hub cache": storage.check_hub_cache,
    }
    found = [checked(name, check) for name, check in checks.items()]
    found += run_isolated(isolated, limit_seconds=limit_seconds)
    return Diagnosis(checks=tuple(map(anonymous, found)))


def checked(name: str, check: Callable[[], Outcome]) -> Check:
    """Run a check; what it raises becomes its failure."""
    try:
        result, detail = check()
    except FastvecError as error:
        result, detail = "FAILED", str(error)
    except Exception as error:  # a check of a broken machine may raise anything; the others still run
        result, detail = "FAILED", f"{type(error).__name__}: {one_line(error)}"
    return Check(name=name, result=result, detail=detail)
