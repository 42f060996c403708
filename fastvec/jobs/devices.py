"""Which devices the processes of a job use: the option `--devices`."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fastvec.errors import UsageError
from fastvec.system.limits import core_count

# read by OpenMP, by oneDNN through it, and by the threads of the tokenizer
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Devices:
    """A kind of device, `cpu` or `cuda`, and the environment variables of each process that uses one of them."""

    kind: str
    environments: tuple[Mapping[str, str], ...]


def parse_devices(given: str) -> Devices | None:
    """Parse `all`, which is every GPU; the numbers of GPUs, as in `0,2`; or `cpu:4`, which is four processes.

    Returns None for `all` on a machine without a GPU, which is the same as no option. The CPU's threads are divided
    among the processes, unless the environment says how many threads a process has.
    Raises UsageError for anything else, and for a GPU that does not exist.
    """
    if not isinstance(given, str):
        raise UsageError(f"devices {given!r} are not a string: give 'all', '0,1' or 'cpu:4'")
    if match := re.fullmatch(r"cpu:([1-9]\d*)", given):
        return _divided("cpu", [{"CUDA_VISIBLE_DEVICES": ""}] * int(match[1]))
    if given != "all" and not re.fullmatch(r"\d+(,\d+)*", given):
        raise UsageError(f"devices {given!r} are not known: give all, numbers of GPUs such as 0,1, or cpu:4")
    found = _gpus()
    if given == "all":
        return _divided("cuda", [{"CUDA_VISIBLE_DEVICES": name} for name in found]) if found else None
    numbers = [int(number) for number in given.split(",")]
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"devices {given!r} name a GPU twice; name it once")
    for number in numbers:
        if number >= len(found):
            have = f"{len(found)}, numbered from 0" if found else "none; give cpu:4 for four processes"
            raise UsageError(f"device {number} does not exist: the number of GPUs here is {have}")
    return _divided("cuda", [{"CUDA_VISIBLE_DEVICES": found[number]} for number in numbers])


def _gpus() -> list[str]:
    """Return what `CUDA_VISIBLE_DEVICES` must be for each GPU that this process may use."""
    import torch  # counts the GPUs without starting to use one

    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    numbers = range(torch.cuda.device_count())
    return [visible[number] if visible else str(number) for number in numbers]


def _divided(kind: str, environments: list[dict[str, str]]) -> Devices:
    threads = {name: str(max(core_count() // len(environments), 1)) for name in _THREADS if name not in os.environ}
    return Devices(kind, tuple({**threads, **one} for one in environments))
