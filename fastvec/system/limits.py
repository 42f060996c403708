"""How much memory and how many cores this process may use, within the limits of its container or its job.

Linux limits a group of processes: both versions of control groups, and the groups above, which limit it too.
"""

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")


def memory_bytes() -> int:
    """Return the size of the memory that this process may use; 0 if the system does not say."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return 0
    return min([found, *(limit for limit, _ in _memory_limits())])


def available_bytes() -> int | None:
    """Return how much more memory this process may take without swapping; None if the system does not say."""
    free = [limit - used for limit, used in _memory_limits()]
    if MEMINFO.is_file():
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
        if "MemAvailable" in fields:
            free.append(int(fields["MemAvailable"].split()[0]) * 1024)
    return min(free, default=None)


def core_count() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def core_quota() -> float | None:
    """Return how many cores' time a container leaves to this process, such as 1.5; None if all."""
    found = []
    for group in _groups("cpu"):
        values = (_text(group / "cpu.max") or "").split()
        if not values:
            values = [_text(group / name) or "max" for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
        if all(value.isdecimal() for value in values):  # else `max`, or −1
            found.append(int(values[0]) / int(values[1]))
    return min(found, default=None)


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Yield the limit of each group, and what is used of it but for files that the system can drop from memory."""
    for group in _groups("memory"):
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            found, now = _text(group / limit), _text(group / used)
            if found is not None and found.isdecimal():
                fields = dict(line.split() for line in (_text(group / "memory.stat") or "").splitlines())
                yield int(found), int(now or 0) - int(fields.get(cached, 0))


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's group and of those above it, as far as they are to be seen."""
    for line in (_text(OWN_CGROUPS) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", controller) or controller in controllers.split(","):
            base = CGROUPS / controller if controllers else CGROUPS
            own = base / path.lstrip("/")
            yield from [own, *own.parents][: len(own.parts) - len(base.parts) + 1]


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:  # not there, or not for this user
        return None
