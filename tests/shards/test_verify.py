"""`fastvec verify` of a folder finds what is damaged, missing, or not part of the output, and names it."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastvec.errors import OutputError
from fastvec.shards.folder import LocalFolder
from fastvec.shards.merge import merge_folder
from fastvec.shards.verify import verify_folder
from fastvec.system.sealed import read_sealed, sealed
from tests import THOROUGH

PARTS = [f"part-0000{number}.arrow" for number in range(3)]
SMALL = 1000  # bytes of a file of which each place is damaged
FEW = 6  # places of another one


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


def damaged(content: bytes) -> Iterator[bytes]:
    """Yield `content` with a flipped bit at each place; of a large file, and in `make test`, at a few."""
    every = THOROUGH and len(content) < SMALL
    for at in range(len(content)) if every else random.Random(len(content)).sample(range(len(content)), FEW):
        yield content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :]


@pytest.mark.sampled
@pytest.mark.parametrize("name", [*PARTS, "_manifest.json", "_errors.jsonl"])
def test_every_flipped_byte_is_found(folder: LocalFolder, tmp_path: Path, name: str) -> None:
    """Each place of the parts is tested in `tests/output/test_damage.py`."""
    path = folder.path / name
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        assert failed(folder)
        with pytest.raises(OutputError):
            merge_folder(folder, tmp_path / "merged.arrow")
    assert list(tmp_path.glob("merged*")) == []


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["_job.json", "_receipts/*/1.json"])
def test_every_flipped_byte_of_what_makes_lost_shards_is_found(folder: LocalFolder, name: str) -> None:
    (path,) = folder.path.glob(name)
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        (problem,) = failed(folder)
        assert problem[0] == ("_job.json" if name == "_job.json" else "receipts")


def test_a_record_and_receipts_of_earlier_versions_pass(folder: LocalFolder) -> None:
    """These had no CRC32, and receipts did not say whether a shard was read back."""
    for path in (folder.path / "_job.json", *folder.path.glob("_receipts/*/*.json")):
        record = read_sealed(path.read_bytes())
        record.pop("verified", None)
        path.write_text(json.dumps(record, separators=(",", ":")) + "\n")
    assert failed(folder) == []
    shutil.rmtree(folder.path / "_receipts")
    assert failed(folder) == []
    (folder.path / "_job.json").unlink()
    assert failed(folder) == []


def test_receipts_and_a_record_of_other_work_are_found(folder: LocalFolder) -> None:
    job = folder.path / "_job.json"
    first, second, _ = (path for path in sorted(folder.path.glob("_receipts/*/*.json")))
    own, record = read_sealed(second.read_bytes()), read_sealed(job.read_bytes())
    assert own["shard"] == 1
    for changed, problem in (
        ({"bytes": own["bytes"] + 1}, "is not that of part-00001.arrow"),
        ({"checksum": "0badc0de"}, "is not that of part-00001.arrow"),
        ({"counts": {**own["counts"], "tokens": 1}}, "their counts are not those of _manifest.json"),
    ):
        second.write_bytes(sealed({**own, **changed}))
        ((name, detail),) = failed(folder)
        assert (name, problem in detail) == ("receipts", True)
    second.write_bytes(first.read_bytes())
    ((name, detail),) = failed(folder)
    assert (name, detail) == (
        "receipts",
        f"{second} is damaged: delete it, and run the command again; it is only needed to make lost shards again",
    )
    second.write_bytes(sealed(own))
    job.write_bytes(sealed({**record, "fingerprint": {**record["fingerprint"], "dims": 1}}))
    remedy = "delete it; it is only needed to make lost shards again"
    assert failed(folder) == [("_job.json", f"is that of another job than _manifest.json: {remedy}")]


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
        (Path.unlink, [("files", f"{PARTS[1]} is missing: run the same fastvec embed again")]),
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
