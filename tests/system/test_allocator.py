import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from fastvec.system.allocator import keep_freed_memory
keep_freed_memory()
def run():
    kept = [torch.ones(1 << 22) for _ in range(8)]  # 16 MiB each
for _ in range(4):
    run()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_freed_memory_is_not_cleared_by_the_system_again() -> None:
    faults = int(subprocess.check_output([sys.executable, "-c", FAULTS], text=True))
    assert faults < 10 * 8 * 4096 / 100  # a hundredth of the pages, which all fault if freed memory is returned
