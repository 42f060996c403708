"""How much memory a block takes at its peak, whatever the process took before."""

from pathlib import Path
from typing import Self

import pytest

from fastvec.report import peak_memory_bytes

RESET_PEAK = "5"  # see proc_pid_clear_refs(5)


class PeakMemory:
    """Measures by how many bytes resident memory grows in the block; skips the test where a peak cannot be reset."""

    growth: int

    def __enter__(self) -> Self:
        try:
            Path("/proc/self/clear_refs").write_text(RESET_PEAK)
        except OSError:
            pytest.skip("the peak of a process's memory cannot be reset here")
        self._before = peak_memory_bytes() or 0
        return self

    def __exit__(self, *_: object) -> None:
        self.growth = (peak_memory_bytes() or 0) - self._before
