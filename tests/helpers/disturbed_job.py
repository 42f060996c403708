"""An embedding job on a simulated machine, which faults disturb, and what must be true of its files at any moment."""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faulting.machine import Files, Machine
from fastvec import Encoder, embed
from fastvec.errors import FastvecError
from fastvec.output.verify import verify
from fastvec.shards.folder import LocalFolder
from fastvec.shards.verify import verify_folder
from tests.helpers.corpora import texts, write_arrow

ROWS = 10
JOBS: Mapping[str, tuple[str, dict[str, Any]]] = {  # the names of the output and the input, and options
    "arrow": ("vecs.arrow", {}),
    "parquet": ("vecs.parquet", {}),
    "int8": ("vecs.arrow", {"vector_dtype": "int8"}),
    "passages": ("vecs.arrow", {"long": "chunks", "chunk_tokens": 20, "chunk_text": True}),
    "mapped": ("vecs.arrow", {"keep": None, "hash": True}),
    "shards": ("vecs/", {"shard_rows": 4}),
    "int8 shards": ("vecs/", {"shard_rows": 4, "vector_dtype": "int8"}),
}
SETTINGS: tuple[dict[str, Any], ...] = ({}, {"vector_column": "other"})  # of this job, and of another
MODIFIED = (1_700_000_000_000_000_000, 1_700_000_001_000_000_000)  # when each version of the input was written, in ns
UNFINISHED = re.compile(r"_work/|_receipts/|_job\.json|.*\.(part|journal|tmp|lock)$|_errors\.jsonl|.*\.errors\.jsonl")


@dataclass(kw_only=True)
class DisturbedJob:
    """A job of `kind` in `root`, which all jobs of a test share.

    `expected` has the finished files of each undisturbed job. `tried` counts the faults.
    """

    root: Path
    encoder: Encoder
    kind: str
    expected: dict[tuple[str, int, int], dict[str, bytes]] = field(default_factory=dict)
    tried: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for name in ("folder", "attic"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        self.machine = Machine(self.root / "folder", self.root / "attic")
        self.name, self._options = JOBS[self.kind]
        self.source = self.root / ("rows.arrow" if self.kind == "mapped" else "rows.jsonl")
        self.output = self.machine.folder / self.name
        self.is_folder = self.name.endswith("/")
        # a broken row before the last one, and no other error allowed: a chunk with vectors of NaN always exceeds it
        self.row_errors = 0 if self.is_folder or self.kind == "mapped" else 1
        self.was_cut = False  # whether a finished file was deleted since the job was finished
        self.is_damaged = False  # whether durable bytes changed since then: only that may make a run refuse to resume
        self.write_input(0)
        self._known = [self.undisturbed(settings, version) for settings in (0, 1) for version in (0, 1)]
        self.calls = len(self.machine.run(self.embed))
        self.machine.start_with(frozenset())

    def write_input(self, version: int, *, renamed: bool = False) -> None:
        """Write one of two versions of the input, of the same size, in place or under another name that is renamed."""
        draft = self.source.with_name("draft") if renamed else self.source
        words = [f"{'ab'[version]} word {number} " * (1 + number % 3) for number in range(ROWS)]
        if self.kind == "mapped":
            mapped = self.source.with_name("mapped")
            write_arrow(mapped, texts([*words[:-1], None]))
            draft.write_bytes(mapped.read_bytes())
        else:
            lines = [json.dumps({"text": word}) for word in words]
            draft.write_text("\n".join([*lines[:-2], "{broken" if self.row_errors else lines[-2], lines[-1]]))
        os.utime(draft, ns=(MODIFIED[version],) * 2)
        if renamed:
            os.replace(draft, self.source)
        self.version = version

    def embed(self, settings: int = 0, output: str | None = None, **options: Any) -> None:
        target = f"{self.machine.folder}/{self.name}" if output is None else output
        own = {**self._options, "max_errors": self.row_errors, **SETTINGS[settings], **options}
        embed([self.source], target, encoder=self.encoder, column="text", **own)

    def attempt(self, settings: int = 0, *, fault: Mapping[str, Any] | None = None, **options: Any) -> str | None:
        """Run the command with faults of the machine; returns its error, which is one line of a FastvecError."""
        errors: list[FastvecError] = []
        finished: list[bool] = []

        def program() -> None:
            try:
                self.embed(settings, **options)
                finished.append(True)
            except FastvecError as error:
                errors.append(error)

        self.machine.run(program, **(fault or {}))
        if finished:
            self.was_cut = self.is_damaged = False
            self.require_right(self.machine.after_power_cut("lost", "lost"), finished=True)
        self.require_right(self.machine.files())
        if not errors:
            return None
        message = str(errors[0])
        assert "\n" not in message
        assert self.is_damaged or not re.search("damaged|no journal|not in order", message), message
        return message

    def undisturbed(self, settings: int, version: int) -> dict[str, bytes]:
        """Return the finished files of a run without faults, by name."""
        key = (self.kind, settings, version)
        if key not in self.expected:
            before, place = self.version, self.root / "undisturbed"
            self.write_input(version)
            place.mkdir()
            self.embed(settings, f"{place}/{self.name}")
            self.expected[key] = published(frozenset(
                (path.relative_to(place).as_posix(), path.read_bytes()) for path in place.rglob("*") if path.is_file()
            ))  # fmt: skip
            check = verify_folder(LocalFolder(place / "vecs")) if self.is_folder else verify(place / self.name)
            assert check.return_code == 0
            shutil.rmtree(place)
            self.write_input(before)
        return self.expected[key]

    def require_right(self, files: Files, *, finished: bool = False) -> None:
        """Assert that what has a final name has the bytes of an undisturbed run of the job that wrote it."""
        found, known = published(files), self._known
        whole = self.name if not self.is_folder else "vecs/_manifest.json"
        owners = [one for one in known if found.get(whole) == one[whole]]
        assert owners or whole not in found, f"{whole} is wrong"
        assert owners or not finished, f"{whole} is missing"
        if self.is_folder:
            for name in found:
                assert any(found[name] == one.get(name) for one in known), f"{name} is wrong"
            assert not owners or self.was_cut or found == owners[0]

    def require_nothing_left(self) -> None:
        names = {re.sub("[0-9a-f]{16}", "ID", name) for name, _ in self.machine.files()}
        if not self.is_folder:
            own = self.output.name.removesuffix(".arrow")
            assert names == {self.name} | ({f"{own}.errors.jsonl"} if self.row_errors else set())
            return
        assert names == {
            "vecs/_job.json", "vecs/_manifest.json",
            *(f"vecs/part-0000{number}.arrow" for number in range(3)),
            *(f"vecs/_receipts/ID/{number}.json" for number in range(3)),
        }  # fmt: skip

    def has(self, name: str) -> bool:
        return any(self.machine.folder.rglob(name))

    def damage(self, name: str, change: Callable[[bytes], bytes | None]) -> bool:
        """Change the durable content of files of this name, or delete them if that is None; returns if there are."""
        self.is_damaged = True
        paths = sorted(self.machine.folder.rglob(name))
        for path in paths:
            content = change(path.read_bytes())
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
        self.machine.start_with(self.machine.files())
        return bool(paths)

    def follow(self, message: str) -> bool:
        """Do what an error asks for; returns whether the command is to be repeated with --overwrite."""
        path = Path(re.split(r":? is | has |: ", message)[0])
        doomed: list[Path] = []
        if "delete both files" in message or "delete it and" in message:
            doomed = [path.with_suffix(".part"), path.with_suffix(".journal")]
        elif "delete it" in message or "move it away" in message:
            doomed = [path]
        elif "remove the folder" in message:
            shutil.rmtree(path.parent)
        for one in doomed:
            one.unlink(missing_ok=True)
        self.machine.start_with(self.machine.files())
        return "--overwrite" in message


def published(files: Files) -> dict[str, bytes]:
    """Return the files with final names; those of row errors are checked with the ones that they belong to."""
    return {name: content for name, content in files if not UNFINISHED.match(name.removeprefix("vecs/"))}
