"""The environment of a process that a test starts."""

import os

from tests import ROOT


def environment() -> dict[str, str]:
    """Return this process's environment, without a GPU or a network, and with the packages of this checkout."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
