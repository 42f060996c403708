"""The environment of a process that a test starts, and whether it still runs."""

import os
from pathlib import Path

from tests import ROOT


def environment() -> dict[str, str]:
    """Return this process's environment, without a GPU or a network, and with the packages of this checkout."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}


def process_exists(pid: int) -> bool:
    """Return whether a process runs; one that was killed and not waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter if it ends between opening and reading
        return False
