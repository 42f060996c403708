"""Run all checks of `fastvec doctor`. Each is a function by name, `module:function`, so that an import may fail too."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from fastvec.doctor.isolated import LIMIT_SECONDS, run_isolated
from fastvec.doctor.report import Check, Diagnosis, Outcome, anonymous
from fastvec.errors import FastvecError, one_line

# in the order of the report; `output` is given where a job will write
HERE = {
    "python": "fastvec.doctor.versions:check_python",
    "packages": "fastvec.doctor.versions:check_packages",
    "extras": "fastvec.doctor.versions:check_extras",
    "memory": "fastvec.doctor.environment:check_memory",
    "open files": "fastvec.doctor.environment:check_open_files",
    "hub": "fastvec.doctor.environment:check_hub",
    "output": "fastvec.doctor.storage:check_output",
    "temporary": "fastvec.doctor.storage:check_temporary",
    "spool": "fastvec.doctor.storage:check_spool",
    "hub cache": "fastvec.doctor.storage:check_hub_cache",
}
# what a process of its own does; it is told what to call with each step, and without torch, the others are not run
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

    `isolated` are the checks that run in a process of their own. It may take `limit_seconds`, and so may each that
    follows one in which a check failed.
    """
    found = [checked(name, target, *([output] if name == "output" else [])) for name, target in HERE.items()]
    found += run_isolated(isolated, limit_seconds=limit_seconds)
    return Diagnosis(checks=tuple(map(anonymous, found)))


def checked(name: str, target: str, *arguments: Any) -> Check:
    """Run the check `target`; what it raises becomes its failure."""
    module, _, function = target.partition(":")
    try:
        found: Outcome = getattr(import_module(module), function)(*arguments)
    except FastvecError as error:
        found = "FAILED", str(error)
    except Exception as error:  # on a broken machine anything may be raised; the other checks still run
        found = "FAILED", f"{type(error).__name__}: {one_line(error)}"
    return Check(name=name, result=found[0], detail=found[1])
