"""Every damaged byte of an output is found by `verify`, and every command tells of damage in one line."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fastvec import Encoder, embed
from fastvec.errors import FastvecError, OutputError
from fastvec.output.convert import convert
from fastvec.output.inspect import inspect
from fastvec.output.merge import merge_files
from fastvec.output.ownership import errors_path
from fastvec.output.reader import read_output
from fastvec.output.verify import verify
from tests import ROOT, THOROUGH
from tests.helpers.memory import PeakMemory
from tests.helpers.outputs import CHUNKS, make_chunk, make_schema, run_job, write_output

DTYPES = ("float32", "float16", "int8", "binary")
KINDS = [*(f"{dtype}{suffix}" for dtype in DTYPES for suffix in (".arrow", ".parquet")), "passages.arrow"]
FEW = 40  # of the places of a file, in `make test`
COPIED = 7  # every so many places, damage is also given to the commands that copy


@pytest.fixture(scope="module")
def outputs(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound outputs of each kind, with kept columns, nulls and row errors; one has passages and hashes."""
    folder = tmp_path_factory.mktemp("outputs")
    for kind in KINDS[:-1]:
        run_job(folder / kind, dtype=kind.partition(".")[0])
    encoder = Encoder.from_pretrained(tiny_llama, dtype="float32", device="cpu")
    texts = pa.table({"id": [1, 2, 3], "text": ["one sentence. And another one, which is longer.", None, "three"]})
    passages: dict[str, Any] = {"long": "chunks", "chunk_tokens": 16, "chunk_text": True}
    embed(texts, folder / KINDS[-1], encoder=encoder, column="text", keep=["id"], hash=True, **passages)
    return folder


@pytest.fixture
def output(outputs: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of one of them with its row errors, in a folder of its own."""
    copy = tmp_path / "folder" / str(request.param)
    copy.parent.mkdir()
    for path in (outputs / copy.name, errors_path(outputs / copy.name)):
        if path.exists():
            shutil.copy(path, copy.parent)
    return copy


each_kind = pytest.mark.parametrize("output", KINDS, indirect=True)
both_formats = pytest.mark.parametrize("output", ["float32.arrow", "float32.parquet"], indirect=True)


def places(output: Path) -> Sequence[int]:
    """All places in a file, or every fifth if other files have the same structure; in `make test` a few."""
    size = output.stat().st_size
    if THOROUGH:
        return range(0, size, 1 if output.stem == DTYPES[0] else 5)
    return sorted(random.Random(size).sample(range(size), FEW))


def commands(output: Path, folder: Path) -> dict[str, Callable[[], object]]:
    return {
        "inspect": lambda: str(inspect(output)),
        "convert": partial(convert, output, folder / "copy.parquet", overwrite=True),
        "merge": partial(merge_files, [output], folder / "copy.arrow", overwrite=True),
    }


def require_found(output: Path, folder: Path, what: object, *, copied: bool) -> None:
    """Fail unless `verify` finds the damage, and the other commands refuse it in one line; `inspect` may show it."""
    assert verify(output).return_code == 1, what
    for name, command in commands(output, folder).items():
        if name == "inspect" or copied:
            try:
                command()
            except FastvecError as error:
                assert "\n" not in str(error), what  # noqa: PT017
            else:
                assert name == "inspect", what


@pytest.mark.sampled
@each_kind
def test_a_damaged_byte_is_found_wherever_it_is(output: Path, tmp_path: Path) -> None:
    """Of half of the bytes, a bit is flipped; the others are replaced. Memory does not grow with what they claim."""
    sound, draw = output.read_bytes(), random.Random(0)
    assert verify(output).return_code == 0
    with PeakMemory() as memory:
        for number, at in enumerate(places(output)):
            mask = 1 << draw.randrange(8) if number % 2 else draw.randrange(1, 256)
            output.write_bytes(sound[:at] + bytes([sound[at] ^ mask]) + sound[at + 1 :])
            require_found(output, tmp_path, f"byte {at} ^ {mask}", copied=number % COPIED == 0)
    assert memory.growth < 256 << 20, "for a file of a few KB"


@pytest.mark.sampled
@both_formats
def test_a_file_that_was_cut_is_found_at_every_length(output: Path, tmp_path: Path) -> None:
    sound = output.read_bytes()
    for number, length in enumerate(places(output)):
        output.write_bytes(sound[:length])
        require_found(output, tmp_path, f"{length} bytes", copied=number % COPIED == 0)


@both_formats
def test_bytes_that_were_added_are_found(output: Path, tmp_path: Path) -> None:
    sound = output.read_bytes()
    for added in (b"\0", b"\n", b"PAR1", b"ARROW1", sound[-100:], sound):
        output.write_bytes(sound + added)
        require_found(output, tmp_path, added[:10], copied=True)


def pieces_of(path: Path) -> list[bytes]:
    """The bytes of each batch or row group, and the footer."""
    content, ends = path.read_bytes(), [0, *(block.end_offset for block in read_output(path).blocks), None]
    return [content[begin:end] for begin, end in pairwise(ends)]


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastvec.output.parquet_file.GROUP_BYTES", 100)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_batches_at_other_places_are_found(tmp_path: Path, suffix: str) -> None:
    """Batches that were exchanged, doubled, lost, or are another file's: their bytes are intact."""
    output, other = tmp_path / f"vecs{suffix}", tmp_path / f"other{suffix}"
    run_job(output)
    run_job(other, normalize=False)
    pieces, others = pieces_of(output), pieces_of(other)
    first, second, third, *rest = pieces
    assert len(rest) == CHUNKS - 2
    assert verify(output).return_code == 0
    for damaged in (
        [first, third, second, *rest],
        [first, second, second, third, *rest],
        [first, second, second, *rest],
        [first, third, *rest],
        [first, others[1], third, *rest],
        [*others[:-1], pieces[-1]],
    ):
        output.write_bytes(b"".join(damaged))
        require_found(output, tmp_path, len(damaged), copied=True)


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_rows_that_were_written_in_another_order_or_twice_are_found(tmp_path: Path, suffix: str) -> None:
    """Their checksums match: that is how they were written."""
    output = tmp_path / f"vecs{suffix}"
    sound = [make_chunk(index)[0] for index in range(CHUNKS)]
    for batches, problem in (
        (sound, None),
        ([sound[1], sound[0], *sound[2:]], "row 0 is numbered 5"),
        ([*sound[:2], sound[1], *sound[3:]], "row 10 is numbered 5"),
        ([sound[0].take([1, 0, 2, 3, 4]), *sound[1:]], "row 0 is numbered 1"),
    ):
        write_output(output, batches, nulls=9)
        assert [check.detail for check in verify(output).checks if not check.passed][:1] == (
            [problem] if problem else []
        )
        output.unlink()


def test_numbers_that_are_no_integers_are_damage(tmp_path: Path) -> None:
    """JSON has numbers such as 1e999, which a damaged byte can make."""
    output, schema = tmp_path / "vecs.arrow", make_schema()
    for key, value in (("inputs", '[{"uri": "a", "first_row": 0, "rows": 1e999}]'), ("shard", "[0, 1e999]")):
        metadata = {**schema.metadata, f"fastvec.{key}".encode(): value}
        write_output(output, [make_chunk(0)[0].replace_schema_metadata(metadata)])
        (check,) = verify(output).checks
        assert check.detail.startswith(f"{output} has damaged metadata: OverflowError(")
        output.unlink()


@pytest.fixture(params=["arrow", "parquet"])
def with_errors(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    output = tmp_path / f"vecs.{request.param}"
    run_job(output)
    return output


def only_problem(output: Path) -> str:
    (failed,) = (check for check in verify(output).checks if not check.passed)
    assert failed.name == "row errors"
    return failed.detail


def test_damaged_row_errors_are_found(with_errors: Path) -> None:
    path = errors_path(with_errors)
    sound = path.read_bytes()
    changed = f"{path.name} does not match its CRC32 in the output: it is damaged, or another output's"
    damaged = [sound[:at] + bytes([sound[at] ^ (1 << at % 8)]) + sound[at + 1 :] for at in range(len(sound))]
    another = sound.replace(b'"row": 9', b'"row": 8')
    for content in (*damaged, sound[:-1], sound[: sound.index(b"\n") + 1], b"", sound * 2, another):
        path.write_bytes(content)
        assert only_problem(with_errors) == changed
    path.unlink()
    missing = f"{path.name}, which lists 2 row errors, is missing: restore it, or embed again"
    assert only_problem(with_errors) == missing
    os.mkfifo(path)
    assert only_problem(with_errors) == missing


def test_row_errors_beside_an_output_without_any_are_found(with_errors: Path) -> None:
    path = errors_path(with_errors)
    with_errors.unlink()
    write_output(with_errors, [make_chunk(index)[0] for index in range(CHUNKS)], nulls=9)
    assert not path.exists()
    path.write_bytes(b'{"row": 9, "code": "not_finite"}\n')
    problem = only_problem(with_errors)
    assert problem == f"{path.name} has 1 lines, and the output 0 row errors: it is another output's"


def test_row_errors_go_with_a_conversion_and_stay_behind_in_a_merge(with_errors: Path, tmp_path: Path) -> None:
    copy, joined = tmp_path / "copy.parquet", tmp_path / "joined.arrow"
    convert(with_errors, copy)
    assert errors_path(copy).read_bytes() == errors_path(with_errors).read_bytes()
    errors_path(joined).write_bytes(b'{"row": 0, "code": "of the output that is replaced"}\n')
    merge_files([with_errors], joined)
    assert not errors_path(joined).exists()
    for output in (copy, joined):
        assert verify(output).return_code == 0

    errors_path(with_errors).write_bytes(b"{}\n")
    with pytest.raises(OutputError, match="does not match its CRC32 in vecs"):
        convert(with_errors, copy, overwrite=True)
    errors_path(with_errors).unlink()
    with pytest.raises(OutputError, match=r"which lists the row errors of .*, is missing: restore it"):
        convert(with_errors, copy, overwrite=True)
    assert verify(copy).return_code == 0


def runs(output: Path) -> Iterator[tuple[str, "subprocess.CompletedProcess[str]"]]:
    arguments: dict[str, list[object]] = {
        "verify": [output],
        "inspect": [output],
        "convert": [output, output.with_name("copy.parquet"), "--overwrite"],
        "merge": [output, "-o", output.with_name("copy.arrow"), "--overwrite"],
    }
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))}
    for name, rest in arguments.items():
        command = [sys.executable, "-m", "fastvec", name, *map(str, rest)]
        yield name, subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
@both_formats
def test_the_commands_tell_of_damage_in_one_line(output: Path) -> None:
    sound = output.read_bytes()
    for at in random.Random(1).sample(range(len(sound)), 2):
        output.write_bytes(sound[:at] + bytes([sound[at] ^ 16]) + sound[at + 1 :])
        for name, done in runs(output):
            if name == "inspect" and done.returncode == 0:  # it reads only samples
                continue
            assert done.returncode == 1, (name, at, done)
            assert name == "verify" or (len(done.stderr.splitlines()), done.stdout) == (1, ""), (name, at, done)
            assert "Traceback" not in done.stderr + done.stdout
