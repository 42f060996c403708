import os
from pathlib import Path

import pytest

from fastvec.corpus.locations import find_files
from fastvec.errors import InputError, UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with files at two levels; only their names matter here."""
    for name in ["b.parquet", "a.arrow", "deep/c.parquet", "notes.txt", ".hidden.parquet", "_metadata.parquet"]:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    for name in ["in/_delta_log", "in/.cache", "empty"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").touch()
    (tmp_path / "in/_delta_log/d.parquet").touch()
    (tmp_path / "in/.cache/e.parquet").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["in"], ["in/a.arrow", "in/b.parquet", "in/deep/c.parquet"]),
        (["in/b.parquet", "in/a.arrow"], ["in/b.parquet", "in/a.arrow"]),
        (["in/deep", Path("in/a.arrow")], ["in/deep/c.parquet", "in/a.arrow"]),
        (["in/*.parquet"], ["in/_metadata.parquet", "in/b.parquet"]),
        (["in/**/[bc].parquet"], ["in/b.parquet", "in/deep/c.parquet"]),
        (["in/notes.txt"], ["in/notes.txt"]),
        ("in/b.parquet", ["in/b.parquet"]),
        (Path("in/deep"), ["in/deep/c.parquet"]),
        (["in/d*/**"], ["in/deep/c.parquet"]),
        (["[ei]*/"], ["in/a.arrow", "in/b.parquet", "in/deep/c.parquet"]),
    ],
)
def test_files_stand_in_the_order_given_and_folders_and_patterns_are_sorted(
    folder: Path, inputs: list[str | Path] | str | Path, expected: list[str]
) -> None:
    assert [str(path) for path in find_files(inputs)] == expected


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder: Path) -> None:
    (folder / "in/[bc].parquet").touch()

    assert find_files(["in/[bc].parquet"]) == [Path("in/[bc].parquet")]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "no input was given"),
        (["in/missing.parquet"], "in/missing.parquet: no such file or folder"),
        (["in/*.csv"], r"in/\*.csv: no file matches the pattern"),
        (["empty"], r"empty: the folder contains no data file; it is searched for \*\.parquet, \*\.arrow,"),
        (["in/a.arrow", "in"], "in/a.arrow is the same file as the input in/a.arrow"),
        (["in/a.arrow", "link.arrow"], "link.arrow is the same file as the input in/a.arrow"),
        (["in/loop.arrow", "./in/loop.arrow"], r"in/loop\.arrow: no such file or folder"),
        (["in/" + "a" * 300], "aa: cannot be read: File name too long"),
        (["em*"], r"em\*: no file matches the pattern"),
        ([""], "no such file or folder"),
        (["nowhere://bucket/a.parquet"], "nowhere:// is not an address that fsspec knows: expected s3://"),
    ],
)
def test_inputs_that_cannot_be_a_corpus_are_refused(folder: Path, inputs: list[str], message: str) -> None:
    os.symlink(folder / "in/a.arrow", "link.arrow")
    os.symlink("loop.arrow", "in/loop.arrow")

    with pytest.raises((InputError, UsageError), match=message):
        find_files(inputs)


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(UsageError) as refused:
        find_files(["https://user:secret@example.org/a.parquet?token=secret"])

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("output", ["in/out.arrow", "in/deep/out.arrow", "in/../in/out.arrow"])
def test_an_output_inside_an_input_folder_is_refused(folder: Path, output: str) -> None:
    with pytest.raises(UsageError, match="the output is inside the input folder in"):
        find_files(["in"], output=Path(output))


def test_an_output_that_is_an_input_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"in/a\.arrow is both an input and the output"):
        find_files(["in/a.arrow"], output=folder / "in/a.arrow")


def test_a_pattern_leaves_out_what_a_run_makes(folder: Path) -> None:
    """This way, the same command finds the same inputs when rerun, whatever state the last run left."""
    output, expected = Path("in/vecs.arrow"), [Path("in/a.arrow"), Path("in/b.parquet"), Path("in/deep/c.parquet")]
    patterns = ["in/[!_n]*"]
    assert find_files(patterns, output=output) == expected
    for name in ("vecs.arrow", "vecs.arrow.part", "vecs.arrow.journal", "vecs.errors.jsonl", "vecs.errors.jsonl.part"):
        Path("in", name).touch()
    assert find_files(patterns, output=output) == expected
    assert Path("in/vecs.arrow") in find_files(patterns, output=Path("other.arrow"))


def test_a_pattern_that_meets_a_loop_of_links(folder: Path) -> None:
    os.symlink("loop.arrow", "in/loop.arrow")
    assert find_files(["in/*.arrow"], output=Path("in/loop.arrow")) == [Path("in/a.arrow")]
    assert find_files(["in/*.arrow"], output=Path("v.arrow")) == [Path("in/a.arrow"), Path("in/loop.arrow")]


def test_a_folder_tells_what_looks_like_data_and_is_not_read(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("D.PARQUET", "deep/e.Arrow", "f.parq"):
        (folder / "in" / name).touch()
    os.symlink("deep", "in/linked")
    found = [str(path) for path in find_files(["in"])]
    assert found == ["in/D.PARQUET", "in/a.arrow", "in/b.parquet", "in/deep/c.parquet", "in/deep/e.Arrow"]
    assert caplog.messages == [
        "in: skipped 4 files or links, e.g. in/.hidden.parquet: folders are searched for *.parquet, *.arrow, "
        "*.jsonl, *.ndjson, *.csv and *.tsv, without "
        "names that start with . or _ and without links to folders; to read one of these, give its path"
    ]
    caplog.clear()
    find_files(["in/deep"])
    assert caplog.messages == []


def test_an_output_beside_the_input_files_is_fine(folder: Path) -> None:
    assert find_files(["in/a.arrow", "in/deep"], output=Path("in/out.arrow")) == [
        Path("in/a.arrow"),
        Path("in/deep/c.parquet"),
    ]
