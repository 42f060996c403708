"""However and whenever a run into a folder is killed, also by a power cut, rerunning it makes the same bytes."""

import errno
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fastvec import Encoder, embed
from fastvec.errors import FastvecError
from fastvec.shards.folder import LocalFolder
from fastvec.shards.verify import verify_folder
from tests import THOROUGH

if sys.platform == "win32":
    pytest.skip("needs flock", allow_module_level=True)

from benchmarks.faulting.machine import POWER_CUTS, Files, Machine

pytestmark = [pytest.mark.sampled, pytest.mark.usefixtures("same_ids")]
PUBLISHED = "vecs/_manifest.json"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "folder", tmp_path / "attic")


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """Two files of two rows, each of which becomes a shard; the first one has a row error."""
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    files[0].write_text('{"text": "one"}\n{broken\n')
    files[1].write_text('{"text": "three"}\n{"text": "four"}\n')
    return files


def kill_points(calls: list[str], offset: int) -> list[int]:
    """Return every system call, or every ninth from `offset` on in `make test`."""
    return list(range(len(calls)))[offset :: 1 if THOROUGH else 9]


def durable(machine: Machine) -> Files:
    """Return what survives a power cut, without what is left of unfinished shards, which the next command deletes."""
    files = machine.after_power_cut("lost", "lost")
    return frozenset((name, content) for name, content in files if not name.startswith("vecs/_work/"))


def require_right(machine: Machine, expected: Files) -> None:
    """Assert that a manifest is only there with all that it names."""
    if PUBLISHED in dict(machine.files()):
        assert expected <= machine.files()
        assert verify_folder(LocalFolder(machine.folder / "vecs")).return_code == 0


def test_killed_at_every_system_call(machine: Machine, encoder: Encoder, sources: list[Path]) -> None:
    job: Callable[[], object] = partial(embed, sources, f"{machine.folder}/vecs/", encoder=encoder, shard_rows=2)
    job()
    expected = machine.files()
    names = sorted(re.sub("_receipts/[0-9a-f]{16}/", "_receipts/ID/", name) for name, _ in expected)
    assert names == [
        f"vecs/{name}"
        for name in (
            "_errors.jsonl",
            "_job.json",
            "_manifest.json",
            "_receipts/ID/0.json",
            "_receipts/ID/1.json",
            "part-00000.arrow",
            "part-00001.arrow",
        )
    ]
    machine.start_with(frozenset())
    calls = machine.run(job)
    assert machine.files() == durable(machine) == expected

    for kill_at in kill_points(calls, 0):
        machine.start_with(frozenset())
        machine.run(job, kill_at=kill_at)
        all_left = {machine.after_power_cut(*cut) for cut in POWER_CUTS}
        machine.run(job)  # what the killed run left is in memory, not on the disk
        assert machine.files() == expected
        lost = {name for name, _ in expected - durable(machine)}
        assert all("_receipts/" in name for name in lost), f"killed at call {kill_at}"  # not needed beside a manifest
        for left in all_left:
            machine.start_with(left)
            require_right(machine, expected)
            machine.run(job)
            assert machine.files() == durable(machine) == expected, f"killed at call {kill_at}"


@pytest.mark.parametrize(
    "options",
    [
        {"vector_dtype": "int8"},
        {"long": "chunks", "chunk_tokens": 20, "chunk_text": True},
        {"hash": True, "reuse": "earlier.arrow"},
    ],
    ids=["int8", "passages", "reuse"],
)
@pytest.mark.parametrize("name", ["vecs.arrow", "vecs.parquet"])
def test_one_file_is_killed_at_every_system_call(
    machine: Machine, encoder: Encoder, sources: list[Path], options: dict[str, Any], name: str, tmp_path: Path
) -> None:
    if "reuse" in options:
        options = {**options, "reuse": tmp_path / options["reuse"]}
        embed(sources[1:], options["reuse"], encoder=encoder, hash=True)
    job: Callable[[], object] = partial(embed, sources, machine.folder / name, encoder=encoder, **options)
    calls = machine.run(job)
    expected = machine.files()
    for kill_at in kill_points(calls, 4):
        machine.start_with(frozenset())
        machine.run(job, kill_at=kill_at, midway=True)
        for left in {machine.after_power_cut(*cut) for cut in POWER_CUTS}:
            assert {(file, content) for file, content in left if file == name} <= expected
            machine.start_with(left)
            machine.run(job)
            assert machine.files() == machine.after_power_cut("lost", "lost") == expected, f"killed at {kill_at}"


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_any_call_fails_in_a_folder(machine: Machine, encoder: Encoder, sources: list[Path], error: int) -> None:
    """The error is a line, and the same command finishes."""
    job: Callable[[], object] = partial(embed, sources, f"{machine.folder}/vecs/", encoder=encoder, shard_rows=2)
    calls = machine.run(job)
    expected = machine.files()
    for at in kill_points(calls, 2)[:: 3 if THOROUGH else 1]:

        def run() -> None:
            with suppress(FastvecError):
                job()

        machine.start_with(frozenset())
        machine.run(run, fails=lambda index, name, at=at: error if index == at else None)  # type: ignore[misc]
        require_right(machine, expected)
        job()
        assert machine.files() == expected, f"{calls[at]}, call {at}"
