"""What disturbs a run: kills, power cuts, full and failing disks, clocks, signals, memory, other runs, the input."""

import os
import pickle
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from benchmarks.faulting import inside
from benchmarks.faulting.command import Program, Running, end_orphans
from benchmarks.faulting.damage import change_times, damage, damageable
from benchmarks.faulting.machine import POWER_CUTS, Durable, Files
from benchmarks.faulting.trial import Trial, sleep_until

PAGE = 4096
DISK_BYTES = 256 << 20
# where Python waits forever for a thread that had no memory to begin: https://github.com/python/cpython/issues/140746
THREAD_START = re.compile(r"threading\.py\", line \d+ in start$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    weight: int
    cause: Callable[[Trial], object]
    applies: Callable[[Trial], bool] = lambda _: True


def kill_at_a_time(trial: Trial) -> None:
    moment = trial.moment()

    def kill(running: Running) -> None:
        time.sleep(moment)
        running.kill()

    trial.disturb("SIGKILL at a random time", {-signal.SIGKILL}, during=kill)


def kill_at_a_call(trial: Trial, *, power_cut: bool = False) -> None:
    """Kill the run at a random system call of those that change the output; with `power_cut`, cut the power then.

    What earlier runs that were killed in this way have not synced is lost too.
    """
    machine, call = trial.machine, trial.draw.randrange(max(trial.expected.calls, 1))
    cut, midway = trial.draw.choice(POWER_CUTS), trial.draw.random() < 0.3
    if not trial.machine_knows:
        machine.settle()
    left = trial.job.folder / "left"

    def die() -> NoReturn:
        files = machine.after_power_cut(*cut) if power_cut else None
        left.write_bytes(pickle.dumps((files, machine.durable)))
        os.kill(os.getpid(), signal.SIGKILL)
        raise SystemExit

    def within(program: Program) -> None:
        try:
            machine.run(program, kill_at=call, midway=midway, die=die)
        finally:
            left.write_bytes(pickle.dumps((None, machine.durable)))

    left.unlink(missing_ok=True)
    name = "power cut" if power_cut else "SIGKILL at a system call"
    if power_cut:
        trial.history.append(f"power cut: names {cut[0]}, bytes {cut[1]}")
    trial.disturb(name, {-signal.SIGKILL}, within=within, by_machine=True)
    files, machine.durable = _left(left)
    if files is not None:
        machine.start_with(files)
        trial.check_files()


def _left(path: Path) -> tuple[Files | None, Durable]:
    found: tuple[Files | None, Durable] = pickle.loads(path.read_bytes())
    return found


def fail_at_a_call(trial: Trial) -> None:
    """Let system calls fail from a random one on: for good, or once."""
    code = trial.draw.choice(list(inside.CODES))
    at = trial.draw.randrange(max(trial.expected.calls, 50))
    times = trial.draw.choice([1, 2, 1 << 30])
    trial.history.append(f"{os.strerror(code)} at call {at}, {'always' if times > 2 else times}")
    within = partial(inside.fail_calls, at, code, times)
    trial.disturb(f"{inside.CODES[code]} at a system call", inside.EXITS[code], within=within)


def fail_to_read(trial: Trial) -> None:
    at = trial.draw.randrange(40)
    within = partial(inside.fail_reads, [trial.job.output, trial.job.corpus[0].parent], at)
    trial.history.append(f"EIO from read {at}")
    trial.disturb("EIO from read", {1}, within=within)


def jump(trial: Trial) -> None:
    at, seconds = trial.draw.randrange(200), trial.draw.choice([-1e9, -3600.0, -1.0, 1.0, 3600.0, 1e9])
    trial.history.append(f"clocks jump by {seconds:g} s at call {at}")
    trial.disturb("clock jump", (), within=partial(inside.jump_clocks, at, seconds))


def fill_disk(trial: Trial) -> None:
    """Leave few pages on the file system of the output, if it is one that was mounted for that."""
    folder = trial.job.output.parent
    space = os.statvfs(folder)
    used = (space.f_blocks - space.f_bavail) * space.f_frsize
    pages = trial.draw.choice([0, 1, 2, 4, 8, 16, 32])
    if not resize(folder, max(used + pages * PAGE, PAGE)):  # 0 is no limit
        return
    try:
        trial.disturb("full disk", {5})
    finally:
        resize(folder, DISK_BYTES)


def mount(folder: Path) -> bool:
    """Mount a file system in memory; returns whether that was possible, which needs root."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0


def resize(folder: Path, size: int) -> bool:
    command = ["mount", "-o", f"remount,size={size}", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def stop(trial: Trial) -> None:
    """Send a signal once or twice."""
    number = trial.draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    moment, twice = trial.moment(), trial.draw.random() < 0.4
    gap = trial.draw.random() * 0.05

    def send(running: Running) -> None:
        begin = time.monotonic()
        sleep_until(begin, moment)
        running.kill(number)
        if twice:
            sleep_until(begin, moment + gap)
            running.kill(number)

    name = f"{number.name} {'twice' if twice else 'once'}"
    trial.disturb(name, {128 + number, -number}, during=send)


def limit_memory(trial: Trial) -> None:
    room = trial.draw.choice([1 << 20, 4 << 20, 16 << 20, 64 << 20])
    # libraries in C++ and Rust abort or crash, and the C library ends a thread that has no room with 127
    codes = {1, 127, -signal.SIGABRT, -signal.SIGSEGV}
    trial.history.append(f"memory for {room >> 20} MiB more")
    try:
        trial.disturb("memory limit", codes, within=partial(inside.limit_memory, room))
    except TimeoutError as error:
        if not THREAD_START.search(str(error)):
            raise
        trial.killed("memory limit")


def run_twice(trial: Trial) -> None:
    """Start two runs at once, and in a part of the cases kill one."""
    gap, kill = trial.draw.random() * 0.1, trial.draw.random() < 0.3
    first = trial.start(trial.command())
    time.sleep(gap)
    second = trial.start(trial.command(), log="log2")
    if kill:
        time.sleep(trial.moment() / 2)
        first.kill()
    trial.machine_knows = False
    for running, codes in ((first, {-signal.SIGKILL} if kill else set[int]()), (second, set[int]())):
        trial.ended("two runs at once", running.wait(), {4, *codes})


def kill_a_worker(trial: Trial) -> None:
    """Kill processes of `--devices`; another takes the place of each, up to three times."""
    times, gap = trial.draw.randint(1, 6), trial.draw.random() * 0.05

    def kill(running: Running) -> None:
        begin = time.monotonic()
        sleep_until(begin, trial.moment())
        for _ in range(times):
            if workers := running.workers():
                with suppress(ProcessLookupError):
                    os.kill(trial.draw.choice(workers), signal.SIGKILL)
            time.sleep(gap)

    trial.disturb("worker process killed", {1}, during=kill)


def forbid_writing(trial: Trial) -> None:
    """Make the folders of the output read-only, before the run or at a random time."""
    moment = trial.draw.choice([0.0, trial.moment()])

    def forbid(running: Running) -> None:
        time.sleep(moment)
        _set_modes(trial.job.output, 0o555)

    if not moment:
        _set_modes(trial.job.output, 0o555)
    try:
        trial.disturb("read-only folder", {1}, within=inside.obey_modes, during=forbid)
    finally:
        _set_modes(trial.job.output, 0o777)


def _set_modes(folder: Path, mode: int) -> None:
    for parent, folders, _ in os.walk(folder):
        for name in folders:
            with suppress(FileNotFoundError):
                os.chmod(Path(parent, name), mode)
        os.chmod(parent, mode)


def change_input(trial: Trial) -> None:
    """Change an input before the run or during it, and restore it afterwards."""
    path = trial.draw.choice(trial.job.corpus)
    content, times = path.read_bytes(), path.stat()
    moment = trial.draw.choice([0.0, trial.moment()])
    how = trial.draw.choice(["truncated", "longer", "touched", "deleted"])

    def change(running: Running | None = None) -> None:
        time.sleep(moment)
        if how == "truncated":
            os.truncate(path, trial.draw.randrange(len(content)))
        elif how == "longer":
            with path.open("ab") as file:
                file.write(content[: trial.draw.randrange(1, 100)])
        elif how == "touched":
            os.utime(path)
        else:
            path.unlink()

    if not moment:
        change()
    codes = {1, 4, -signal.SIGBUS} if moment else {1, 4}  # a memory map of a file that becomes shorter
    try:
        trial.history.append(f"{path.name} is {how} {'during' if moment else 'before'} the run")
        trial.disturb("changed input", codes, during=change if moment else lambda _: None)
    finally:
        end_orphans()
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def no_finite_vectors(trial: Trial) -> None:
    at = trial.draw.randrange(12)
    trial.disturb("NaN from the model", {3}, within=partial(inside.spoil_vectors, at))


def _can_fill(trial: Trial) -> bool:
    return os.path.ismount(trial.job.output.parent)


def _is_one_process(trial: Trial) -> bool:
    return trial.job.kind != "processes"


FAULTS = [
    Fault(weight=12, cause=kill_at_a_time),
    Fault(weight=12, cause=kill_at_a_call, applies=_is_one_process),
    Fault(weight=12, cause=partial(kill_at_a_call, power_cut=True), applies=_is_one_process),
    Fault(weight=12, cause=fail_at_a_call),
    Fault(weight=5, cause=fail_to_read),
    Fault(weight=5, cause=fill_disk, applies=_can_fill),
    Fault(weight=4, cause=jump),
    Fault(weight=2, cause=change_times),
    Fault(weight=10, cause=stop),
    Fault(weight=4, cause=limit_memory),
    Fault(weight=4, cause=run_twice),
    Fault(weight=5, cause=forbid_writing),
    Fault(weight=5, cause=change_input, applies=lambda trial: trial.job.is_begun and not trial.tainted),
    Fault(weight=10, cause=damage, applies=lambda trial: bool(damageable(trial))),
    Fault(weight=10, cause=no_finite_vectors, applies=lambda trial: "fail" in trial.job.options),
    Fault(weight=20, cause=kill_a_worker, applies=lambda trial: trial.job.kind == "processes"),
]


def disturb(trial: Trial) -> None:
    """Cause a random one of the faults that apply."""
    able = [fault for fault in FAULTS if fault.applies(trial)]
    (fault,) = trial.draw.choices(able, [one.weight for one in able])
    if trial.draw.random() < 0.5:  # else processes of an earlier run may still be there
        end_orphans()
    fault.cause(trial)
