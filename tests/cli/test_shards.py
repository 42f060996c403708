"""The commands on an output in shards."""

import json
from pathlib import Path

import pytest

from tests import ARTICLES
from tests.cli.conftest import Run


@pytest.fixture
def arguments(tiny_llama: Path) -> tuple[str | Path, ...]:
    return ("embed", ARTICLES, "-o", "vecs/", "--model", tiny_llama, "--column", "text", "--shard-rows", "100")


def test_embed_verify_inspect_and_merge(fastvec: Run, arguments: tuple[str | Path, ...]) -> None:
    done = fastvec(*arguments)
    assert (done.exit_code, done.stdout) == (0, "")
    assert "300 rows in 3 shards to vecs in " in done.stderr
    assert fastvec(*arguments) == (0, "", "vecs is already finished: 300 rows in 3 shards\n")

    verified = fastvec("verify", "vecs/")
    assert (verified.exit_code, verified.stdout.splitlines()[-1]) == (0, "vecs: all 5 checks passed")
    shown = fastvec("inspect", "vecs")
    size = sum(path.stat().st_size for path in Path("vecs").glob("part-*"))
    assert f"file         vecs, 3 shards, {size:,} bytes, by fastvec" in shown.stdout
    assert "rows         300, 0 of them without a vector" in shown.stdout
    assert json.loads(fastvec("inspect", "vecs", "--json").stdout)["shards"] == 3
    assert fastvec("merge", "vecs", "-o", "vecs.arrow").exit_code == 0
    assert fastvec("verify", "vecs.arrow").exit_code == 0
    assert "exist" in fastvec("merge", "vecs", "-o", "vecs.arrow").stderr


def test_a_job_array(fastvec: Run, arguments: tuple[str | Path, ...]) -> None:
    first = fastvec(*arguments, "--shard", "1/2")
    assert first.exit_code == 0
    assert "100 rows in 1 shard to vecs in " in first.stderr
    assert "not finished yet: 2 shards of other processes" in first.stderr
    unfinished = fastvec("verify", "vecs")
    assert unfinished.exit_code == 1
    assert "vecs is unfinished: run the same fastvec embed again to resume it" in unfinished.stdout
    last = fastvec(*arguments, "--shard", "0/2", "--json")
    assert [json.loads(last.stdout)[name] for name in ("rows", "shards", "missing_shards")] == [200, 2, 0]
    assert fastvec("verify", "vecs").exit_code == 0


def test_a_shard_alone_is_an_output_but_not_the_whole(fastvec: Run, arguments: tuple[str | Path, ...]) -> None:
    fastvec(*arguments)
    assert fastvec("verify", "vecs/part-00001.arrow").exit_code == 0
    alone = fastvec("merge", "vecs/part-00001.arrow", "vecs/part-00000.arrow", "-o", "merged.arrow")
    assert alone.stderr == "fastvec: vecs/part-00001.arrow is one of several shards: merge their folder, vecs\n"
    twice = fastvec("merge", "vecs", "vecs", "-o", "merged.arrow")
    assert twice.stderr == "fastvec: vecs is a folder, which is merged alone: merge each folder into a file first\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("convert", "vecs", "vecs.npy"), "vecs is a folder: if it is an output in shards, fastvec merge makes one"),
        (("verify", "."), ". has no _manifest.json"),
        (("merge", ".", "-o", "merged.arrow"), ". has no _manifest.json"),
        (("inspect", "."), ". has no _manifest.json"),
        (("embed", ARTICLES, "-o", "a.arrow", "--devices", "cpu:2"), "--devices needs an output in shards: name a fol"),
        (("embed", ARTICLES, "-o", "vecs/", "--devices", "gpu"), "devices 'gpu' are not known"),
        (("embed", ARTICLES, "-o", "nowhere/vecs/"), "nowhere is not a folder: make it first"),
        (("embed", ARTICLES, "-o", "plain/"), "plain is not a folder, and -o plain/ names one: choose another -o"),
        (("embed", ARTICLES, "-o", "plain/vecs/"), "plain is not a folder: make it first"),
    ],
)
def test_mistakes(fastvec: Run, command: tuple[str | Path, ...], message: str) -> None:
    Path("vecs").mkdir()
    Path("plain").touch()
    done = fastvec(*command)
    assert done.exit_code != 0
    assert message in done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("\n") <= 2
