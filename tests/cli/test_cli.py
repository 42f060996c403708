import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.core import ParameterSource
from fsspec.implementations.memory import MemoryFileSystem

from fastvec import __version__
from fastvec.cli.entry import cli
from fastvec.doctor.report import Check, Diagnosis, Result
from tests import ARTICLES, ROOT
from tests.cli.conftest import Run
from tests.helpers.processes import environment


def test_embed_verify_and_inspect(fastvec: Run, tiny_llama: Path) -> None:
    arguments = ("embed", ARTICLES, "-o", "vecs.arrow", "--model", tiny_llama, "--column", "text", "--limit", "50")
    done = fastvec(*arguments)
    assert (done.exit_code, done.stdout) == (0, "")
    assert f"{tiny_llama} runs bidirectional: " in done.stderr
    assert re.search(
        r"^50 rows to vecs.arrow in [\d.]+ s; [\d,]+ rows/s, [\d,]+ tokens/s; .*bottleneck: \w+$", done.stderr, re.M
    )

    again = fastvec(*arguments)
    assert (again.exit_code, again.stderr) == (0, "vecs.arrow is already finished: 50 rows\n")

    verified = fastvec("verify", "vecs.arrow")
    assert (verified.exit_code, verified.stderr) == (0, "")
    shown = json.loads(fastvec("inspect", "vecs.arrow", "--json").stdout)
    assert (shown["rows"], shown["dims"], shown["nulls"]) == (50, 64, 0)


def test_read_back_is_reported_and_identifies_no_job(fastvec: Run, tiny_llama: Path) -> None:
    embed = ("embed", ARTICLES, "--model", tiny_llama, "--column", "text", "--limit", "3", "--shard-rows", "2")
    for options, verified in (((), True), (("--verify",), True), (("--no-verify",), False)):
        for output in ("vecs/", "vecs.arrow", "vecs.parquet"):
            arguments = embed if output == "vecs/" else embed[:-2]
            done = fastvec(*arguments, "-o", output, *options, "--overwrite", "--json", "--quiet")
            assert json.loads(done.stdout)["verified"] is verified, (output, options)
    again = fastvec(*embed[:-2], "-o", "vecs.arrow", "--verify", "--json", "--quiet")
    assert (json.loads(again.stdout)["already_finished"], json.loads(again.stdout)["verified"]) == (True, None)


def test_row_errors_in_a_store_are_verified(
    fastvec: Run, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTVEC_SPOOL", str(tmp_path / "spool"))
    Path("rows.jsonl").write_text('{"text": "one"}\n{broken\n')
    address, store = f"memory://{tmp_path.name}/vecs.arrow", MemoryFileSystem()
    done = fastvec("embed", "rows.jsonl", "-o", address, "--model", tiny_llama, "--column", "text", "--quiet")
    assert done.exit_code == 3
    assert "row errors  1, in vecs.errors.jsonl" in fastvec("verify", address).stdout
    with store.open(f"/{tmp_path.name}/vecs.errors.jsonl", "ab") as errors:
        errors.write(b"\n")
    assert "vecs.errors.jsonl does not match its CRC32" in fastvec("verify", address).stdout
    store.rm(f"/{tmp_path.name}/vecs.errors.jsonl")
    missing = fastvec("verify", address)
    assert (missing.exit_code, "vecs.errors.jsonl, which lists 1 row errors, is missing" in missing.stdout) == (1, True)


def test_json_is_one_document_with_every_field(fastvec: Run, tiny_llama: Path) -> None:
    done = fastvec(
        "embed",
        ARTICLES,
        "-o",
        "vecs.arrow",
        "--model",
        tiny_llama,
        "--column",
        "text",
        "--limit",
        "9",
        "--json",
        "--quiet",
    )
    report = json.loads(done.stdout)
    fields = (
        "rows nulls truncated repaired errors tokens seconds rows_per_second tokens_per_second padding_saved waits "
        "peak_memory_bytes resumed_rows output model device"
    )
    assert set(fields.split()) <= report.keys()
    assert (report["rows"], report["output"], report["device"], done.stderr) == (9, "vecs.arrow", "cpu", "")
    assert report["waits"].keys() == {"read", "tokenize", "encode", "write"}


def test_convert_and_merge(fastvec: Run, tiny_llama: Path) -> None:
    embed = ("embed", ARTICLES, "--model", tiny_llama, "--column", "text", "--quiet")
    for name, limit in (("a", "5"), ("b", "4")):
        assert fastvec(*embed, "--limit", limit, "-o", f"{name}.arrow").exit_code == 0
    merged = fastvec("merge", "a.arrow", "b.arrow", "-o", "all.arrow")
    assert (merged.exit_code, merged.stdout, merged.stderr) == (0, "", "all.arrow: 9 rows, 0.0 MB\n")
    assert fastvec("verify", "all.arrow").exit_code == 0
    converted = fastvec("convert", "all.arrow", "all.parquet")
    assert (converted.exit_code, converted.stdout, converted.stderr) == (0, "", "all.parquet: 9 rows, 0.0 MB\n")
    assert fastvec("verify", "all.parquet").exit_code == 0
    refused = fastvec("convert", "all.arrow", "all.parquet")
    assert (refused.exit_code, refused.stderr.count("\n")) == (4, 1)
    done = fastvec("convert", "all.arrow", "all.parquet", "--overwrite", "--json")
    size = Path("all.parquet").stat().st_size
    assert json.loads(done.stdout) == {"output": "all.parquet", "rows": 9, "size_bytes": size, "left_out": 0}
    assert fastvec("merge", "a.arrow", "b.arrow", "-o", "quiet.arrow", "--quiet") == (0, "", "")


def test_a_dry_run_writes_nothing(fastvec: Run, tiny_llama: Path, tmp_path: Path) -> None:
    arguments = ("embed", ARTICLES, "-o", "vecs.arrow", "--model", tiny_llama, "--column", "text", "--dry-run")
    estimate = json.loads(fastvec(*arguments, "--json").stdout)
    assert (estimate["rows"], estimate["sampled_rows"], estimate["output_bytes"]) == (300, 300, 300 * (64 * 4 + 8))
    assert estimate["tokens"] > 300 * 20
    assert estimate["seconds"] > 0
    assert list(tmp_path.iterdir()) == []


def test_options_come_from_the_environment_too(fastvec: Run, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MODEL": str(tiny_llama), "KEEP": "id title", "BIDIRECTIONAL": "0", "JSON": "1"}.items():
        monkeypatch.setenv(f"FASTVEC_EMBED_{name}", value)
    done = fastvec("embed", ARTICLES, "-o", "vecs.arrow", "--column", "text", "--limit", "3")
    assert (done.exit_code, json.loads(done.stdout)["rows"]) == (0, 3)
    shown = json.loads(fastvec("inspect", "vecs.arrow", "--json").stdout)
    assert (shown["kept"].keys(), shown["bidirectional"]) == ({"id", "title"}, False)


def test_the_environment_knows_every_option_by_its_long_name(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = []
    for command in cli.commands.values():
        for option in [option for option in command.params if isinstance(option, click.Option)]:
            long = next(name for name in option.opts if name.startswith("--"))
            variable = f"FASTVEC_{command.name}_{long.removeprefix('--')}".replace("-", "_").upper()
            with monkeypatch.context() as environment:
                environment.setenv(variable, "1")
                context = command.make_context(command.name, [], resilient_parsing=True)
            if context.get_parameter_source(option.name or "") is not ParameterSource.ENVIRONMENT:
                unknown.append(variable)
    assert unknown == []


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["embed", "nowhere.parquet", "-o", "v.arrow"], 1, r"nowhere.parquet"),
        (["embed", str(ARTICLES), "-o", "v.arrow", "--column", "id"], 1, r"column 'id' is int64, not text"),
        (
            ["embed", str(ARTICLES), "-o", "v.csv", "--column", "text"],
            1,
            r"v.csv ends in neither .arrow nor .parquet",
        ),
        (["embed", str(ARTICLES), "-o", "v.npy", "--column", "text"], 1, r"v.npy .* fastvec convert v.arrow v.npy"),
        (["embed", str(ARTICLES), "-o", "v.arrow", "--column", "body"], 1, r"body"),
        (["embed", str(ARTICLES), "-o", "v.arrow", "--keep", "id", "--keep-all"], 2, r"choose one"),
        (["embed", str(ARTICLES), "-o", "v.arrow", "--quantize", "int4"], 2, r"'int4' is not one of 'int8', 'fp8'"),
        (["embed", str(ARTICLES), "-o", "v.arrow", "--batch-tokens", "many"], 2, r"neither auto nor a number"),
        (
            ["embed", str(ARTICLES), "-o", "v.arrow", "--vector-column", "row"],
            2,
            r"'row' is the name of another output column",
        ),
        (
            ["embed", str(ARTICLES), "-o", "v.arrow", "--vector-column", "\udcff"],
            2,
            r"column '\\udcff' is not valid UTF-8",
        ),
        (
            ["embed", str(ARTICLES), "-o", "v.arrow", "--instruction", "\udcff"],
            2,
            r"'\\udcff' is not valid UTF-8: encode",
        ),
        (["embed", str(ARTICLES), "-o", "\udcff.arrow", "--column", "text"], 1, r"'\\udcff.arrow' is not UTF-8, which"),
        (["embed", str(ARTICLES), "-o", "v" * 300 + ".arrow"], 1, r"vv.arrow: File name too long"),
        (["embed", str(ARTICLES), "-o", ".arrow"], 1, r".arrow has no name before .arrow: .* such as vecs.arrow,.*"),
        (["embed", str(ARTICLES)], 2, r"Missing option '-o'"),
        (["convert", str(ARTICLES), "v.npy"], 1, r"is a Parquet file, but not an output of this version of fastvec"),
        (["convert", "v.arrow", "v.csv"], 1, r"v.csv ends in none of .parquet, .npy and .lance"),
        (["convert", "v.arrow"], 2, r"Missing argument 'OUT.parquet.OUT.npy.OUT.lance'"),
        (["merge", "v.arrow", "w.arrow", "-o", "all.arrow"], 1, r"v.arrow cannot be read: No such file or directory"),
        (["merge", "v.arrow", "v.arrow", "-o", "all.arrow"], 2, r"a file was given twice"),
        (["heal"], 2, r"No such command 'heal'"),
    ],
)
def test_a_mistake_is_one_line(
    fastvec: Run,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    exit_code: int,
    message: str,
) -> None:
    monkeypatch.setenv("FASTVEC_EMBED_MODEL", str(tiny_llama))
    done = fastvec(*arguments)
    assert done.exit_code == exit_code
    assert done.stdout == ""
    assert re.fullmatch(rf"fastvec: .*({message}).*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_leaves_a_run_that_resumes(
    fastvec: Run, tiny_llama: Path, tmp_path: Path, number: int, exit_code: int
) -> None:
    pq.write_table(pa.table({"text": [f"a sea {row}" for row in range(20_000)]}), tmp_path / "seas.parquet")
    arguments = ["embed", "seas.parquet", "-o", "vecs.arrow", "--model", str(tiny_llama)]
    # one token per batch makes 20,000 forwards, so the signal reliably arrives in the middle of the run
    process = subprocess.Popen(
        [sys.executable, "-m", "fastvec", *arguments, "--batch-tokens", "1"],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "text column: " in process.stderr.readline()
    assert "runs bidirectional" in process.stderr.readline()
    time.sleep(0.2)
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    assert process.returncode == exit_code
    assert re.search(
        r"^fastvec: stopped by SIG\w+ at row [\d,]+ of 20,000: run the same command again to resume$", message, re.M
    )
    assert fastvec(*arguments).exit_code == 0
    assert fastvec("verify", "vecs.arrow").exit_code == 0


class Gone(io.StringIO):
    """A stream whose reader has closed its end."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@pytest.mark.parametrize("stderr", [None, Gone()])
def test_a_run_completes_when_stderr_is_closed(
    fastvec: Run, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, stderr: Gone | None
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    done = fastvec("embed", ARTICLES, "--model", tiny_llama, "--column", "text", "--limit", "9", "-o", "vecs.arrow")
    assert sys.stderr is not stderr
    sys.stderr.close()  # the stream that replaced it
    assert (done.exit_code, fastvec("verify", "vecs.arrow").exit_code) == (0, 0)


@pytest.mark.parametrize("command", ["embed", "adapt", "eval"])
def test_every_option_is_documented(command: str) -> None:
    text = (ROOT / f"docs/{command}.md").read_text()
    shown = subprocess.run(
        [sys.executable, "-m", "fastvec", command, "--help"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    options = set(re.findall(r"--[a-z-]+", shown)) - {"--help"}
    assert len(options) > 20
    assert {option for option in options if not re.search(rf"{option}(?![a-z-])", text)} == set()


ADAPT = ("--column", "title", "--steps", "2", "--batch-size", "4", "--dtype", "float32", "--device", "cpu", "-o", "out")


def test_adapt_trains_reports_and_says_when_it_is_finished(fastvec: Run, tiny_llama: Path) -> None:
    command = ("adapt", "--objective", "simcse", "--model", tiny_llama, "--data", ARTICLES, *ADAPT)
    done = fastvec(*command, "--json")
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    promised = "objective steps tokens seconds loss_first loss_last held_out_before held_out_after spearman_before"
    assert {*promised.split(), "spearman_after", "output"} <= report.keys()
    assert (report["objective"], report["steps"], report["output"], report["rows"]) == ("simcse", 2, "out", 300)
    again = fastvec(*command)
    assert (again.exit_code, again.stdout) == (0, "")
    assert again.stderr == "out is already finished: 2 steps of simcse\n"
    other = fastvec(*command, "--lr", "1")
    assert other.exit_code == 4
    assert other.stderr.startswith("fastvec: out belongs to another job: lr was 3e-05, now 1.0; replace it with --over")
    encoded = fastvec("embed", ARTICLES, "-o", "vecs.arrow", "--model", "out", "--column", "title", "--limit", "3")
    assert "out runs bidirectional: fastvec adapt trained it this way" in encoded.stderr
    assert encoded.exit_code == 0


def test_adapt_refuses_in_one_line(fastvec: Run, tiny_llama: Path) -> None:
    for arguments, code, message in (
        (
            ("--objective", "simcse", "--data", ARTICLES, "--mask-token", "_"),
            2,
            "--mask-token does not apply to --objective simcse: omit it",
        ),
        (("--objective", "mntp", "--data", "nowhere.txt"), 1, "nowhere.txt: no such file or folder"),
        (("--objective", "mntp", "--data", ARTICLES, "--eval-pairs", "no.csv"), 1, "no.csv: cannot be read"),
    ):
        done = fastvec("adapt", "--model", tiny_llama, *arguments, *ADAPT)
        assert done.exit_code == code
        assert done.stderr.count("\n") == 1
        assert message in done.stderr
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(("result", "exit_code"), [("ok", 0), ("note", 0), ("FAILED", 1)])
def test_doctor_says_by_its_exit_code_whether_a_check_failed(
    fastvec: Run, result: Result, exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def diagnosed(output: str) -> Diagnosis:
        asked.append(output)
        return Diagnosis(checks=(Check(name="gpu", result=result, detail="found"),))

    monkeypatch.setattr("fastvec.doctor.diagnosis.diagnose", diagnosed)
    done = fastvec("doctor")
    assert (done.exit_code, done.stderr) == (exit_code, "")
    assert done.stdout.splitlines()[0] == f"{result:<8}gpu         found"
    done = fastvec("doctor", "--json", "-o", "vecs.arrow")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["passed"], found["version"]) == (exit_code, exit_code == 0, __version__)
    assert found["checks"] == [{"name": "gpu", "result": result, "detail": "found"}]
    assert asked == [".", "vecs.arrow"]
