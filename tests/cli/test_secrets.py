"""Credentials of the environment and in addresses are in nothing that a run prints, logs or writes, however it ends."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import ARTICLES
from tests.helpers.processes import environment

SECRET = "planted5ecret"
# what libraries read: the hub's client, botocore, gcsfs, adlfs, and any that goes through a proxy
VARIABLES = {
    "HF_TOKEN": f"hf_{SECRET}",
    "AWS_ACCESS_KEY_ID": f"AKIA{SECRET}",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_SESSION_TOKEN": SECRET,
    "AZURE_STORAGE_CONNECTION_STRING": f"AccountName=a;AccountKey={SECRET}",
    "AZURE_STORAGE_SAS_TOKEN": f"sv=1&sig={SECRET}",
    "HTTPS_PROXY": f"http://user:{SECRET}@127.0.0.1:9",
    "HTTP_PROXY": f"http://user:{SECRET}@127.0.0.1:9",
}
# The root logger at DEBUG: whatever fastvec and every library log goes to stderr. A library may log an exception that
# it caught; it is renamed there, so that a traceback under its own name is one that the command let through.
AT_DEBUG = """
import logging
written = logging.Formatter.formatException
logging.Formatter.formatException = lambda *given: written(*given).replace("Traceback", "logged:")
logging.basicConfig(level=logging.DEBUG)
from fastvec.cli.entry import main
main()
"""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    texts = ["A whale is a mammal.", "Bread is baked.", "", None, "The train leaves."]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def command(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", AT_DEBUG, *arguments],
            env=environment() | VARIABLES | more,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return command


def assert_kept(done: "subprocess.CompletedProcess[str]", folder: Path) -> None:
    assert SECRET not in done.stdout + done.stderr
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert SECRET.encode() not in path.read_bytes(), path


def test_a_run_of_a_file_keeps_them(run: Run, tmp_path: Path) -> None:
    done = run("embed", "corpus.jsonl", "-o", "vecs.arrow", "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    assert_kept(done, tmp_path)


@pytest.mark.slow
def test_shards_and_a_dry_run_keep_them(run: Run, tmp_path: Path) -> None:
    for more in (["--dry-run"], ["--devices", "cpu:2"]):
        done = run("embed", "corpus.jsonl", "-o", "vecs/", "--device", "cpu", *more)
        assert done.returncode == 0, done.stderr
        assert_kept(done, tmp_path)
    assert list((tmp_path / "vecs").rglob("*.json"))


@pytest.mark.slow
def test_an_adaptation_keeps_them(run: Run, tmp_path: Path, tiny_llama: Path) -> None:
    options = ["--objective", "simcse", "--steps", "1", "--batch-size", "2", "--device", "cpu", "-o", "adapted"]
    done = run("adapt", "--data", str(ARTICLES), "--column", "text", "--model", str(tiny_llama), *options)
    assert done.returncode == 0, done.stderr
    assert_kept(done, tmp_path)
    assert (tmp_path / "adapted" / "fastvec.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("corpus", "model", "more"),
    [
        (f"s3://{SECRET}:{SECRET}@bucket/a.parquet", None, {}),
        (f"https://user:{SECRET}@example.org/a.parquet", None, {}),
        (f"https://example.org/a.parquet?X-Amz-Signature={SECRET}", None, {}),
        (f"abfs://container@account.dfs.core.windows.net/a.parquet?sv=1&sig={SECRET}", None, {}),
        ("https://example.org/a.parquet", None, {}),  # by the proxy, which does not answer
        ("corpus.jsonl", f"https://user:{SECRET}@example.org/model", {}),
        ("corpus.jsonl", "org/private", {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}),
        ("missing.jsonl", None, {}),
    ],
)
def test_a_run_that_fails_keeps_them(
    run: Run, tmp_path: Path, corpus: str, model: str | None, more: dict[str, str]
) -> None:
    options = [] if model is None else ["--model", model]
    done = run("embed", corpus, "-o", "vecs.arrow", "--device", "cpu", *options, **more)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("fastvec: ")
    assert_kept(done, tmp_path)
    assert not (tmp_path / "vecs.arrow").exists()
