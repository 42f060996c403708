"""Faults in any order: kills, power cuts, failing disks, changed inputs, damaged files and other runs.

After each of them, what has a final name has the bytes of an undisturbed run, and every error is one line. In the end,
after what the errors ask for, the command finishes with these bytes and leaves nothing else behind.
"""

import errno
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from fastvec import Encoder
from fastvec.errors import FastvecError, RefusedError
from fastvec.forward import Forward
from fastvec.report import Progress

if sys.platform == "win32":
    pytest.skip("needs flock", allow_module_level=True)

from benchmarks.faulting.machine import POWER_CUTS
from tests.helpers.disturbed_job import JOBS, DisturbedJob

COMMANDS = st.fixed_dictionaries({"settings": st.sampled_from([0, 0, 0, 1]), "overwrite": st.booleans()})
CHUNKS = st.integers(1, 6)
ERRORS = st.sampled_from([errno.ENOSPC, errno.EIO, errno.EDQUOT])
PLACES = st.floats(0, 1, exclude_max=True)  # in a file, or among the system calls of a run
TAILS = st.sampled_from([b"", b"\0" * 40, b"garbage", b"garbage\n", b"\n" * 30_000])
Command = dict[str, Any]
REMEDIES = 8  # that may follow each other


class Faults(RuleBasedStateMachine):
    """One job, its machine and its input.

    Rules have no preconditions: how far the input was read when it changes depends on threads.
    """

    root: Path
    encoder: Encoder
    expected: dict[tuple[str, int, int], dict[str, bytes]]
    tried: Counter[str]

    @initialize(kind=st.sampled_from(sorted(JOBS)))
    def begin(self, kind: str) -> None:
        self.job = DisturbedJob(
            root=self.root, encoder=self.encoder, kind=kind, expected=self.expected, tried=self.tried
        )
        self.error: str | None = None

    def attempt(self, name: str, **options: Any) -> None:
        self.job.tried[name] += 1
        self.error = self.job.attempt(**options)

    @rule(command=COMMANDS)
    def run(self, command: Command) -> None:
        self.attempt("undisturbed run", **command)

    @rule(command=COMMANDS, place=PLACES, midway=st.booleans())
    def is_killed(self, command: Command, place: float, midway: bool) -> None:
        self.attempt("kill", fault={"kill_at": int(place * self.job.calls), "midway": midway}, **command)

    @rule(cut=st.sampled_from(POWER_CUTS))
    def loses_power(self, cut: Any) -> None:
        self.job.tried["power cut"] += 1
        self.job.machine.start_with(self.job.machine.after_power_cut(*cut))
        self.job.require_right(self.job.machine.files())

    @rule(command=COMMANDS, place=PLACES, error=ERRORS, forever=st.booleans())
    def a_call_fails(self, command: Command, place: float, error: int, forever: bool) -> None:
        at = int(place * self.job.calls)
        self.job.is_damaged = True  # what a failed fsync dropped is lost once the power fails

        def fails(index: int, name: str) -> int | None:
            return error if index == at or (forever and index > at and name in ("open", "write", "fsync")) else None

        self.attempt(errno.errorcode[error], fault={"fails": fails}, **command)

    @rule(command=COMMANDS, largest=st.integers(1, 300))
    def writes_are_short(self, command: Command, largest: int) -> None:
        self.attempt("short writes", fault={"largest_write": largest}, **command)

    @rule(command=COMMANDS, chunks=CHUNKS)
    def is_stopped(self, command: Command, chunks: int) -> None:
        seen: list[Progress] = []
        stop = {"progress": seen.append, "stop_signal": lambda: 15 if len(seen) >= chunks else None}
        self.attempt("SIGTERM", **stop, **command)

    @rule(version=st.integers(0, 1), renamed=st.booleans())
    def input_changes(self, version: int, renamed: bool) -> None:
        self.job.tried["changed input"] += 1
        self.job.write_input(version, renamed=renamed)

    @rule(command=COMMANDS, chunks=CHUNKS, renamed=st.booleans())
    def input_changes_while_it_is_read(self, command: Command, chunks: int, renamed: bool) -> None:
        other = 1 - self.job.version
        at = at_chunk(chunks, lambda: self.job.write_input(other, renamed=renamed))
        self.attempt("input changed while it is read", progress=at, **command)

    @rule(chunks=CHUNKS, place=PLACES, bit=st.integers(0, 7))
    def a_bit_of_the_journal_flips(self, chunks: int, place: float, bit: int) -> None:
        self.damage("flipped bit of a journal", "*.journal", chunks, lambda content: flipped(content, place, bit))

    @rule(chunks=CHUNKS, place=PLACES, tail=TAILS)
    def the_journal_is_cut(self, chunks: int, place: float, tail: bytes) -> None:
        self.damage("cut journal", "*.journal", chunks, lambda content: content[: int(place * len(content))] + tail)

    @rule(chunks=CHUNKS, tail=TAILS)
    def the_journal_is_gone_or_grows(self, chunks: int, tail: bytes) -> None:
        self.damage("changed journal", "*.journal", chunks, lambda content: content + tail if tail else None)

    @rule(chunks=CHUNKS, place=PLACES, bit=st.integers(0, 7))
    def a_bit_of_the_data_flips(self, chunks: int, place: float, bit: int) -> None:
        self.damage("flipped bit of the data", "*.part", chunks, lambda content: flipped(content, place, bit))

    @rule(chunks=CHUNKS, place=PLACES, is_cut=st.booleans(), tail=TAILS)
    def the_data_is_cut_or_grows(self, chunks: int, place: float, is_cut: bool, tail: bytes) -> None:
        self.damage(
            "cut data",
            "*.part",
            chunks,
            lambda content: content[: int(place * len(content)) if is_cut else None] + tail,
        )

    def damage(self, fault: str, name: str, chunks: int, change: Callable[[bytes], bytes | None]) -> None:
        """Change files of this name; if there are none, a run is stopped first."""
        if not self.job.has(name):
            self.is_stopped({}, chunks)
        self.job.tried[fault] += self.job.damage(name, change)

    @rule(command=COMMANDS, chunks=CHUNKS, settings=st.integers(0, 1))
    def a_second_run_begins(self, command: Command, chunks: int, settings: int) -> None:
        def second() -> None:
            refused = pytest.raises(RefusedError, match=r"is locked by a running process|belongs to another job")
            with suppress(FastvecError) if self.job.is_folder else refused:  # it may do what is free of a folder
                self.job.embed(settings)

        self.attempt("second run", progress=at_chunk(chunks, second), **command)

    @rule(number=st.integers(0, 2))
    def a_finished_file_is_deleted(self, number: int) -> None:
        name = f"part-0000{number}.arrow" if self.job.is_folder else self.job.name
        self.job.was_cut = True
        self.job.tried["deleted output"] += self.job.damage(name, lambda content: None)

    @rule(command=COMMANDS, forward=st.integers(0, 5))
    def the_model_fails(self, command: Command, forward: int) -> None:
        with nan_vectors(forward):
            self.attempt("NaN", **command)

    @rule()
    def does_what_the_error_asks_for(self) -> None:
        if self.error is not None:
            self.attempt("remedy", overwrite=self.job.follow(self.error))

    def teardown(self) -> None:
        if not hasattr(self, "job"):
            return
        self.job.write_input(0)
        error = self.job.attempt()
        for _ in range(REMEDIES):
            if error is None:
                break
            error = self.job.attempt(overwrite=self.job.follow(error))
        assert error is None
        self.job.require_nothing_left()
        expected, found = self.job.undisturbed(0, 0), dict(self.job.machine.files())
        assert expected == {name: found[name] for name in expected}


def flipped(content: bytes, place: float, bit: int) -> bytes:
    at = int(place * len(content))
    return content[:at] + bytes(byte ^ 1 << bit for byte in content[at : at + 1]) + content[at + 1 :]


def at_chunk(number: int, action: Callable[[], object]) -> Callable[[Progress], None]:
    """Return a callback that acts once, when this many chunks are done."""
    seen: list[Progress] = []

    def progress(state: Progress) -> None:
        seen.append(state)
        if len(seen) == number:
            action()

    return progress


@contextmanager
def nan_vectors(first: int) -> Iterator[None]:
    """Let the model return NaN in this block, from its forward pass of this number on."""
    forward, calls = Forward.__call__, list[int]()

    def broken(self: Forward, *arguments: Any) -> torch.Tensor:
        calls.append(1)
        vectors = forward(self, *arguments)
        return vectors if len(calls) <= first else torch.full_like(vectors, torch.nan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forward, "__call__", broken)
        yield


@pytest.fixture
def faults(tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> type[Faults]:
    """Commits every second chunk, whatever the clock says; chunks have two rows; int8 ranges come from four texts."""
    monkeypatch.setattr(Encoder, "chunk_limits", {"rows": 2, "bytes": 1 << 20})
    monkeypatch.setattr("fastvec.output.writer.GROUP_BYTES", 1000)
    monkeypatch.setattr("fastvec.output.writer.GROUP_SECONDS", 1e9)
    monkeypatch.setattr("fastvec.embedding.encoded_chunks.FIRST_TEXTS", 4)
    monkeypatch.setattr("fastvec.jobs.worker.LOCK_SECONDS", 0.0)  # a second run is within the first, which cannot end
    own = {"root": tmp_path, "encoder": encoder, "expected": {}, "tried": Counter()}
    return type("Faults", (Faults,), own)


def test_a_few_sequences_of_faults(faults: type[Faults]) -> None:
    """The same ones each time."""
    run_state_machine_as_test(faults, settings=settings(derandomize=True, max_examples=7, stateful_step_count=10))


@pytest.mark.slow
def test_many_sequences_of_faults(faults: type[Faults]) -> None:
    """Others each time; a failure prints how to repeat it."""
    many = settings(max_examples=35, stateful_step_count=25, print_blob=True)
    run_state_machine_as_test(faults, settings=many)
    print(f"{sum(faults.tried.values()):,} faults: {faults.tried}")
