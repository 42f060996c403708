"""Every command in the documentation runs, and prints what the documentation shows.

In a block marked `console`, `$` starts a command and the lines below are its output, of which numbers and dtypes may
differ. A block marked `sh` contains only commands. The shell runs what stands before a `|`. Models and datasets named
by a hub id are tiny ones under that name, and training takes two steps, in one process. Commands of `benchmarks` and
`recipes` have their own tests; here only their arguments are parsed.
"""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from fastvec.cli.entry import main
from fastvec.doctor.diagnosis import HERE, ISOLATED
from tests import ARTICLES, ROOT
from tests.evaluation.data import save_beir
from tests.helpers.checkpoints import save_adapter, save_to_hub_cache, use_hub_cache
from tests.helpers.tiny import SENTENCES, save_decoder

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads an attribute that transformers renamed

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
MODELS = ("Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Embedding-8B", "Qwen/Qwen3-0.6B")
DATASET, SUBSET = "wikimedia/wikipedia", "20231101.simple"
LLM2VEC = "McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp"
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
# checks of `fastvec doctor`, which find other things on each machine
DOCTOR = (*HERE, *ISOLATED)
QUICK = ("README.md", "CONTRIBUTING.md")  # what `make test` runs; all documents take a minute
SETTINGS = {"STEPS": "2", "BATCH_SIZE": "4", "MAX_LENGTH": "32"}


def commands(document: Path) -> list[tuple[str, str | None]]:
    """The commands of a document, in order, each with the output that is shown, None if none is shown."""
    found: list[tuple[str, str | None]] = []
    for language, block in BLOCK.findall(document.read_text()):
        if language == "console":
            parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
            found += [(command, output) for command, _, output in (part.partition("\n") for part in parts)]
        elif language == "sh":
            found += [(line, None) for line in block.replace("\\\n", "").splitlines() if line]
    return found


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file and model that the documents name."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "tests/data").mkdir(parents=True)
    (folder / "corpus").mkdir()
    shutil.copy(ARTICLES, folder / "tests/data")
    few = pq.read_table(ARTICLES).slice(0, 20)
    for name in ("corpus.parquet", "corpus/part.parquet", "wiki.parquet"):
        pq.write_table(few, folder / name)
    articles = pq.read_table(ARTICLES).to_pylist()
    (folder / "articles.jsonl").write_text("".join(f"{json.dumps(article)}\n" for article in articles))
    pq.write_table(pa.table({"text": SENTENCES * 8}), folder / "sentences.parquet")
    pairs = {"question": SENTENCES * 4, "passage": [f"{text} Indeed." for text in SENTENCES] * 4}
    pq.write_table(pa.table(pairs), folder / "pairs.parquet")
    scored = [f'"{text}","{SENTENCES[0]}",{score}' for score, text in enumerate(SENTENCES)]
    (folder / "stsb-dev.csv").write_text("\n".join(["sentence1,sentence2,score", *scored]))
    save_beir(folder / "collection")
    labeled = [f'"{text}",{number % 2}' for number, text in enumerate(SENTENCES)]
    for name in ("train.csv", "test.csv"):
        (folder / name).write_text("\n".join(["text,label", *labeled]))
    decoder = save_decoder(folder / "decoder", "llama")
    shutil.copytree(decoder, folder / "path-or-hub-id")
    cache = folder / "cache"
    for model in (*MODELS, LLM2VEC):
        save_to_hub_cache(decoder, cache, model)
    save_to_hub_cache(save_adapter(decoder, folder / "adapter"), cache, f"{LLM2VEC}-supervised")
    dataset = folder / "dataset"
    (dataset / SUBSET).mkdir(parents=True)
    shutil.copy(folder / "corpus.parquet", dataset / SUBSET)
    save_to_hub_cache(dataset, cache, DATASET, kind="datasets")
    return folder


class Bucket(MemoryFileSystem):  # type: ignore[misc]
    """Stands in for S3."""

    protocol = "s3"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> Any:
        return super()._strip_protocol(path.removeprefix("s3://"))


@pytest.fixture
def here(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the present folder."""
    folder = Path(shutil.copytree(workplace, tmp_path / "here", symlinks=True))
    monkeypatch.chdir(folder)
    use_hub_cache(folder / "cache", monkeypatch)
    monkeypatch.setitem(_registry, "s3", Bucket)
    monkeypatch.setenv("FASTVEC_SPOOL", str(tmp_path / "spool"))
    Bucket.store.clear()
    Bucket().put_file(str(folder / "corpus.parquet"), "bucket/corpus/part-0.parquet")
    for option, value in SETTINGS.items():
        monkeypatch.setenv(f"FASTVEC_ADAPT_{option}", value)
    return folder


@pytest.mark.parametrize(
    "document",
    [pytest.param(path, marks=[] if path.name in QUICK else pytest.mark.slow, id=path.name) for path in DOCUMENTS],
)
def test_commands_run_and_print_what_is_shown(
    document: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for line, shown in commands(document):
        before, _, command = line.rpartition(" | ")
        if before:
            with Path("stdin").open("wb") as piped:
                subprocess.run(before, shell=True, check=True, stdout=piped)
        arguments = shlex.split(command, comments=True)
        if arguments[0] == "torchrun":
            # a single process has nothing to divide; tests/training/test_ranks.py starts several
            arguments = [one for one in arguments[arguments.index("-m") + 1 :] if one != "--fsdp"]
        if arguments[0] == "fastvec":
            with Path("stdin" if before else os.devnull).open() as stdin:
                monkeypatch.setattr(sys, "stdin", stdin)
                code, printed = run(arguments, monkeypatch, capfd)
            assert (code != 0) == (shown is not None and shown.startswith("fastvec: ")), (command, printed)
            assert shown is None or masked(printed) == masked(shown), command
        elif arguments[:2] == ["python", "-m"]:
            parse(arguments[2], arguments[3:])
        elif arguments[0] == "make":
            assert set(arguments[1:]) <= TARGETS, command
        else:
            pytest.fail(f"{document.name} shows a command of a kind that no test runs: {command}")


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capfd.readouterr()
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capfd.readouterr()
    return int(ended.value.code or 0), captured.err + captured.out


def parse(module: str, arguments: list[str]) -> None:
    """Raises click's UsageError for arguments that the module does not take."""
    command = importlib.import_module(module).main
    assert isinstance(command, click.Command)
    for argument in arguments:
        if argument.endswith((".parquet", ".csv")):
            Path(argument).touch()
    command.make_context(module, arguments)


def masked(text: str) -> str:
    """`text` without what differs from run to run and from machine to machine."""
    text = re.sub(r"^[\d,]+ of [\d,]+ rows, .*\n", "", text, flags=re.MULTILINE)  # progress, on a slow machine
    text = re.sub(r"int8 is slower than .*\n", "", text.strip())  # on some CPUs
    text = re.sub(rf"^(?:ok|note) +({'|'.join(DOCTOR)}) .*(?:\n {{20}}.*)*", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"(checks passed), \d+ with a note", r"\1", text)
    text = re.sub(r"\b(float32|bfloat16)\b", "DTYPE", text)
    return re.sub(r"\d[\d,.:]*", "#", text)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "kernels.md",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("api.md", "corpora.md", "eval.md", "search.md")),
    ],
)
def test_python_examples_run(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    document = next(document for document in DOCUMENTS if document.name == name)
    command = "fastvec embed tests/data/articles.parquet -o vecs.arrow --column text --keep title --quiet"
    assert run(command.split(), monkeypatch, capfd) == (0, "")
    examples = [block for language, block in BLOCK.findall(document.read_text()) if language == "python"]
    assert examples
    for example in examples:
        if "embed(" in example:  # another job than the command's
            Path("vecs.arrow").unlink()
        exec(compile(example.replace("steps=500", "steps=2, batch_size=4"), name, "exec"), {})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document: Path) -> None:
    """Paths of the code in a document's text, from the project's root or from `fastvec/`."""
    paths = r"`((?:[\w-]+/)+[\w.-]*\.(?:py|json|md|parquet)|(?:fastvec|kernels|benchmarks)/[\w/]+)`"
    named = set(re.findall(paths, document.read_text()))
    places = (ROOT, ROOT / "fastvec", ROOT / "fastvec/training")
    assert {name for name in named if not any((place / name).exists() for place in places)} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_tests_exist(document: Path) -> None:
    """Tests are named as `file.py::test`, or as `::test` of the file named before."""
    missing, file = [], Path()
    for name, test in re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", document.read_text()):
        file = ROOT / name if name else file
        if not re.search(rf"^ *(?:def|class) {test}\b", file.read_text(), flags=re.MULTILINE):
            missing.append(f"{file.relative_to(ROOT)}::{test}")
    assert missing == []
