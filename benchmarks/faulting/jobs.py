"""Jobs to disturb, each a corpus, a kind of output and options, with what an undisturbed run makes of them."""

import random
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.faulting.command import Ended, Program, Running, end_orphans
from benchmarks.faulting.corpora import save_corpus, save_model
from benchmarks.faulting.machine import Machine
from fastvec.errors import FastvecError
from fastvec.output.ownership import earlier_fingerprint

CORPORA = 6
PLAIN_CORPORA = 2  # the first ones, without row errors
KINDS = {"arrow": 5, "parquet": 3, "folder": 5, "processes": 2, "halves": 2}  # with weights
OPTIONS: dict[tuple[str, ...], int] = {
    (): 5,
    ("--keep", "id"): 2,
    ("--vector-dtype", "int8"): 2,
    ("--vector-dtype", "float16", "--hash"): 1,
    ("--long", "chunks", "--max-length", "32"): 1,
    ("--on-error", "fail"): 2,
}
_ID = re.compile(rb"[0-9a-f]{16}")
# of a job's record and of receipts: whether a file was read back depends on the time that this takes
_VARYING = re.compile(rb'("id":"|"line_crc32":"|"verified":)(?:[0-9a-f]+|true|false)')


class Violation(Exception):
    """A promise that was broken."""


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """How the job ends that nothing disturbs: its files, without the id of a folder's job, and its exit code."""

    files: Mapping[str, bytes]
    code: int
    seconds: float
    calls: int  # system calls that change the output


@dataclass(frozen=True, kw_only=True)
class Job:
    """`folder` is where the corpora, the model and the output are."""

    folder: Path
    corpus: tuple[Path, ...]
    kind: str
    options: tuple[str, ...]

    @property
    def output(self) -> Path:
        """The folder that has the output and nothing else."""
        return self.folder / "out" / "disk"

    @property
    def target(self) -> Path:
        return self.output / (f"vecs.{self.kind}" if self.kind in ("arrow", "parquet") else "vecs")

    @property
    def in_shards(self) -> bool:
        return self.target.suffix == ""

    @property
    def final(self) -> str:
        """The name that exists only when the output is complete."""
        return "vecs/_manifest.json" if self.in_shards else self.target.name

    @property
    def commands(self) -> list[tuple[str, ...]]:
        """The commands that together do the job, in any order."""
        output = f"{self.target}/" if self.in_shards else str(self.target)
        own = ("embed", *map(str, self.corpus), "-o", output, "--model", str(self.folder / "model"))
        own += ("--column", "text", "--dtype", "float32", *self.options)
        if self.in_shards:
            own += ("--shard-rows", "40")
        if self.kind == "processes":
            own += ("--devices", "cpu:2")
        if self.kind == "halves":
            return [(*own, "--shard", f"{half}/2") for half in range(2)]
        return [own]

    @property
    def is_begun(self) -> bool:
        """Whether there is work that the command resumes, or finds finished, and that is no other job's."""
        if self.in_shards:
            return (self.target / "_job.json").exists()
        try:
            return bool(earlier_fingerprint(self.target))
        except FastvecError:  # it is damaged
            return False

    @cached_property
    def undisturbed(self) -> Undisturbed:
        machine = Machine(self.output, self.output.with_name("attic"))
        log, seconds, calls, code = self.folder / "log", 0.0, 0, 0
        for command in self.commands:
            ended = Running(command, log).wait()
            seconds, code = max(seconds, ended.seconds), max(code, ended.code)
            require_end(ended, {0, 3})
        files = contents(self.output)
        verified = Running(["verify", str(self.target)], log).wait()
        if self.final not in files or verified.code != 0:
            raise Violation(f"an undisturbed run ends with {sorted(files)}, and fastvec verify with {verified.code}")
        if self.kind != "processes":
            machine.start_with(frozenset())
            calls = self._count_calls(machine)
        end_orphans()
        for folder in (self.output, self.output.with_name("attic")):
            shutil.rmtree(folder)
        return Undisturbed(files=files, code=code, seconds=seconds, calls=calls)

    def _count_calls(self, machine: Machine) -> int:
        counted = self.folder / "calls"

        def count(program: Program) -> None:
            def to_its_end() -> None:
                with suppress(SystemExit):
                    program()

            counted.write_text(str(len(machine.run(to_its_end))))

        require_end(Running(self.commands[0], self.folder / "log", count).wait(), {0})
        return int(counted.read_text())


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files in a folder by name; the random id of a job in shards is left out of names and contents."""
    for _ in range(100):
        with suppress(FileNotFoundError):  # another run may delete files meanwhile
            return dict(_contents(folder))
    raise Violation(f"{folder} is missing, or its files never stay")


def _contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            name, content = path.relative_to(folder).as_posix(), path.read_bytes()
            if path.suffix == ".json" and path.name != "_manifest.json":
                content = _VARYING.sub(rb"\1", content)
            yield _ID.sub(b"ID", name.encode()).decode(), content


def require_end(ended: Ended, codes: set[int]) -> None:
    """Raise Violation unless a run ended with one of these exit codes, and with at most one line of error."""
    problem = None
    lines = [line for line in ended.printed.splitlines() if line.startswith("fastvec: ")]
    if ended.code not in codes:
        problem = f"ended with {ended.code}, expected one of {sorted(codes)}"
    elif "Traceback" in ended.printed:
        problem = "has a traceback"
    elif len(lines) > 1:
        problem = "has more than one line of error"
    if problem is not None:
        raise Violation(f"fastvec {' '.join(ended.arguments)}\n{problem}\n{ended.printed}")


class Jobs:
    """Draws jobs; those with the same parts are made once."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        (folder / "out").mkdir(exist_ok=True)
        save_model(folder / "model")
        self._corpora = [
            tuple(
                save_corpus(
                    folder / f"corpus-{number}",
                    random.Random(f"{seed} corpus {number}"),
                    awkward=number >= PLAIN_CORPORA,
                )
            )
            for number in range(CORPORA)
        ]
        self._made: dict[tuple[int, str, tuple[str, ...]], Job] = {}

    def draw(self, draw: random.Random) -> Job:
        (kind,) = draw.choices(list(KINDS), list(KINDS.values()))
        (options,) = draw.choices(list(OPTIONS), list(OPTIONS.values()))
        corpus = draw.randrange(PLAIN_CORPORA if "fail" in options else CORPORA)
        key = corpus, kind, options
        if key not in self._made:
            self._made[key] = Job(folder=self.folder, corpus=self._corpora[corpus], kind=kind, options=options)
        return self._made[key]
