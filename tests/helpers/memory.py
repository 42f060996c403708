"""How much memory a block takes at its peak, whatever the process took before."""

from contextlib import suppress
from pathlib import Path
from typing import Self

from fastvec.report import peak_memory_bytes

RESET_PEAK = "5"  # see proc_pid_clear_refs(5)


class PeakMemory:
    """Measures by how many bytes resident memory grows in the block; above the earlier peak if that cannot be reset."""

    growth: int

    def __enter__(self) -> Self:
        with suppress(OSError):  # another system, or a sandbox
            Path("/proc/self/clear_refs").write_text(RESET_PEAK)
        self._before = peak_memory_bytes() or 0
        return self

    def __exit__(self, *_: object) -> None:
        self.growth = (peak_memory_bytes() or 0) - self._before
