"""`fastvec verify` of a folder finds what is damaged, missing, or not part of the output, and names it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fastvec.errors import OutputError
from fastvec.shards.folder import LocalFolder
from fastvec.shards.merge import merge_folder
from fastvec.shards.verify import verify_folder
from tests import THOROUGH

PARTS = [f"part-0000{number}.arrow" for number in range(3)]


@pytest.fixture
def folder(finished: LocalFolder, tmp_path: Path) -> LocalFolder:
    return LocalFolder(Path(shutil.copytree(finished.path, tmp_path / "vecs")))


def failed(folder: LocalFolder) -> list[tuple[str, str]]:
    return [(check.name, check.detail) for check in verify_folder(folder).checks if not check.passed]


def test_a_sound_folder_passes(folder: LocalFolder) -> None:
    assert [(check.name, check.detail) for check in verify_folder(folder).checks] == [
        ("manifest", "3 shards, 12 rows"),
        ("ranges", "rows 0 to 11, without a gap"),
        ("files", "those of the manifest"),
        ("row errors", "1"),
        ("shards", "all pass every check of a file"),
    ]


@pytest.mark.sampled
@pytest.mark.parametrize("name", [*PARTS, "_manifest.json", "_errors.jsonl"])
def test_every_flipped_byte_is_found(folder: LocalFolder, tmp_path: Path, name: str) -> None:
    path = folder.path / name
    content = path.read_bytes()
    step = 97 if THOROUGH else 997
    for position in range(len(name) % step, len(content), step):
        path.write_bytes(content[:position] + bytes([content[position] ^ 8]) + content[position + 1 :])
        assert failed(folder), f"byte {position}"
        with pytest.raises(OutputError):
            merge_folder(folder, tmp_path / "merged.arrow")
    assert list(tmp_path.glob("merged*")) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def swap(path: Path) -> None:
    other = path.with_name(PARTS[2])
    content = other.read_bytes()
    other.write_bytes(path.read_bytes())
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (cut, [(PARTS[1], "is damaged, or has no valid footer")]),
        (Path.unlink, [("files", f"{PARTS[1]} is missing"), (PARTS[1], "No such file")]),
        (swap, [(PARTS[1], "is not the shard that _manifest.json lists"), (PARTS[2], "is not the shard")]),
        (lambda path: shutil.copy(path, path.with_name("part-00003.arrow")), [("files", "part-00003.arrow is not in")]),
    ],
    ids=["cut", "missing", "swapped", "foreign"],
)
def test_a_wrong_file_is_named(
    folder: LocalFolder, damage: Callable[[Path], object], expected: list[tuple[str, str]]
) -> None:
    damage(folder.path / PARTS[1])
    found = failed(folder)
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (_, detail), (_, phrase) in zip(found, expected, strict=True):
        assert phrase in detail or "truncated or damaged" in detail


def test_a_manifest_that_was_rewritten(folder: LocalFolder) -> None:
    path = folder.path / "_manifest.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields))
    assert failed(folder) == [
        ("manifest", f"{folder.location}/_manifest.json is damaged: delete it, and run fastvec embed again")
    ]
