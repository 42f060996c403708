import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import fastvec
from fastvec import Encoder
from fastvec.errors import InputError, InterruptedRunError, ModelError, OutputError, RefusedError, UsageError
from fastvec.report import AdaptProgress, AdaptReport
from fastvec.training.metrics import read_metrics
from fastvec.training.scored_pairs import spearman
from tests import ARTICLES
from tests.helpers.processes import environment
from tests.helpers.tiny import SENTENCES, save_decoder

# options for a short run; float32, so that two runs agree to the last digit
SMALL = {"steps": 6, "batch_size": 4, "max_length": 32, "dtype": "float32", "device": "cpu"}
MNTP = {"objective": "mntp", "data": [ARTICLES], "column": "text", **SMALL}


def adapt(folder: Path, model: Path, **options: Any) -> AdaptReport:
    return fastvec.adapt(**{**MNTP, "model": model, "output": folder, **options})


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV file of scored pairs without a header."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    places = [(i, j) for i in range(5) for j in range(i)]
    lines = [f'"{SENTENCES[i]}","{SENTENCES[j]}",{i * j % 5}' for i, j in places]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = pq.read_table(ARTICLES)
    path = tmp_path_factory.mktemp("pairs") / "questions.parquet"
    answers = [text[:200] for text in table["text"].to_pylist()]
    pq.write_table(pa.table({"question": table["title"], "passage": answers, "other": [*answers[1:], None]}), path)
    return path


@pytest.fixture(scope="module")
def mntp(tiny_llama: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AdaptReport]:
    """An adaptation of the tiny model, with a learning rate at which six steps have an effect."""
    folder = tmp_path_factory.mktemp("mntp") / "adapted"
    return folder, adapt(folder, tiny_llama, lr=5e-3, eval_pairs=pairs, eval_every=2)


def test_an_adaptation_learns_measures_and_leaves_a_whole_folder(mntp: tuple[Path, AdaptReport], pairs: Path) -> None:
    folder, report = mntp
    assert report.loss_last is not None
    assert report.loss_first is not None
    assert report.loss_last < report.loss_first - 0.05
    assert report.held_out_after is not None
    assert report.held_out_before is not None
    assert report.held_out_after < report.held_out_before - 0.05
    assert report.tokens == 6 * 4 * 32
    assert report.return_code == 0
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    measured = [row for row in rows if "spearman" in row]
    assert [row["step"] for row in measured] == [0, 2, 4, 6]
    assert all({"held_out_loss", "held_out_accuracy"} <= row.keys() for row in measured)
    assert report.spearman_before == measured[0]["spearman"]
    assert report.spearman_after == measured[-1]["spearman"]
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "curves.png",
        "fastvec.json",
        "llm2vec_config.json",
        "metrics.jsonl",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert not folder.with_name("adapted.part").exists()


def test_spearman_of_the_report_is_that_of_the_encoder(mntp: tuple[Path, AdaptReport], pairs: Path) -> None:
    folder, report = mntp
    vectors = Encoder.from_pretrained(folder, dtype="float32").encode(SENTENCES)
    cosines = [vectors[i] @ vectors[j] for i in range(5) for j in range(i)]
    scores = [float(line.rpartition(",")[2]) for line in pairs.read_text().splitlines()]
    assert report.spearman_after == pytest.approx(spearman(np.array(cosines), np.array(scores)), abs=1e-6)


def test_the_same_command_again_says_it_is_finished_and_another_is_refused(
    mntp: tuple[Path, AdaptReport], tiny_llama: Path, pairs: Path
) -> None:
    folder, report = mntp
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = adapt(folder, tiny_llama, lr=5e-3, eval_pairs=pairs)
    assert again.already_finished
    assert again.spearman_after == report.spearman_after
    assert str(again) == f"{folder} is already finished: 6 steps of mntp"
    with pytest.raises(RefusedError, match=r"belongs to another job: lr was 0.005, now 5e-05; replace it"):
        adapt(folder, tiny_llama)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_stages_follow_each_other_and_each_is_an_encoder(
    mntp: tuple[Path, AdaptReport], questions: Path, pairs: Path, tmp_path: Path
) -> None:
    simcse, final = tmp_path / "simcse", tmp_path / "final"
    options = {"objective": "simcse", "column": "title", "batch_size": 8, "eval_pairs": pairs}
    first = adapt(simcse, mntp[0], **options, grad_cache=3)
    assert first.held_out_before is not None
    columns = {"query": "question", "positive": "passage", "negatives": ["other"], "column": None}
    options = {"objective": "contrastive", "data": questions, "instruction": "Find it."}
    adapt(final, simcse, **options, **columns, temperature=0.05, lr=1e-2)
    rows = read_metrics(final / "metrics.jsonl")
    assert {"held_out_loss", "held_out_alignment", "held_out_uniformity"} <= rows[0].keys()
    assert losses(final)[-1] < losses(final)[0]
    encoders = [Encoder.from_pretrained(folder, dtype="float32") for folder in (mntp[0], simcse, final)]
    vectors = [encoder.encode(SENTENCES) for encoder in encoders]
    assert abs(vectors[0] - vectors[1]).max() > 1e-5
    assert abs(vectors[1] - vectors[2]).max() > 1e-3
    assert json.loads((final / "adapter_config.json").read_text())["base_model_name_or_path"] == str(simcse)
    assert (encoders[2].encode_query(SENTENCES) == encoders[2].encode(SENTENCES, instruction="Find it.")).all()


def test_full_fine_tuning_trains_every_weight(tiny_llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    report = adapt(tmp_path / "full", tiny_llama, full=True, lr=1e-3)
    assert report.loss_last is not None
    assert report.loss_first is not None
    assert report.loss_last < report.loss_first
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_llama, tmp_path / "full"))
    moved = {name: not torch.equal(tensor, before[f"model.{name}"]) for name, tensor in after.items()}
    assert len(moved) == 20
    assert all(moved.values())


@pytest.mark.slow
def test_bfloat16_learns_too(tiny_llama: Path, tmp_path: Path) -> None:
    for full in (False, True):
        report = adapt(tmp_path / str(full), tiny_llama, dtype="bfloat16", full=full or None, lr=5e-3)
        assert report.loss_last is not None
        assert report.loss_first is not None
        assert report.loss_last < report.loss_first


COMMAND = f"""
import sys, fastvec
from pathlib import Path
fastvec.adapt(objective=sys.argv[1], model=sys.argv[2], data=[{str(ARTICLES)!r}], output=sys.argv[3], steps=16,
    column="text" if sys.argv[1] == "mntp" else "title", batch_size=4, max_length=32, dtype="float32", device="cpu",
    save_every=4, lr=1e-3)
"""


def run(*arguments: str) -> subprocess.Popen[bytes]:
    # two runs at once: with more threads than cores, they would wait for each other
    single = environment() | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], env=single, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mntp", "simcse"])
def test_a_killed_run_goes_on_with_the_same_losses(tiny_llama: Path, tmp_path: Path, objective: str) -> None:
    whole = run(objective, str(tiny_llama), str(tmp_path / "whole"))
    killed = run(objective, str(tiny_llama), str(tmp_path / "killed"))
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed.part/checkpoint-8/fastvec_place.json").exists():
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed").exists()
    again = run(objective, str(tiny_llama), str(tmp_path / "killed"))
    for process in (whole, again):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 16
    tensors = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert tensors[0] == tensors[1]
    assert not list((tmp_path / "killed").glob("checkpoint-*"))


def test_a_signal_stops_a_run_that_goes_on_later(
    tiny_llama: Path, tmp_path: Path, mntp: tuple[Path, AdaptReport]
) -> None:
    shown: list[AdaptProgress] = []

    with pytest.raises(InterruptedRunError, match="stopped by SIGINT at step 1 of 6: run the same command") as caught:
        adapt(tmp_path / "out", tiny_llama, lr=5e-3, stop_signal=lambda: signal.SIGINT)
    assert caught.value.exit_code == 130
    assert not (tmp_path / "out").exists()
    report = adapt(tmp_path / "out", tiny_llama, lr=5e-3, progress=shown.append)
    assert report.resumed_steps == 1
    assert losses(tmp_path / "out") == losses(mntp[0])
    assert (shown[-1].step, shown[-1].steps, shown[-1].new_steps) == (6, 6, 5)


@pytest.mark.slow
def test_a_run_killed_while_it_saves_takes_no_step_more(
    tiny_llama: Path, tmp_path: Path, mntp: tuple[Path, AdaptReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the last checkpoint, while the folder is saved, and before the saved folder is renamed."""

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    for place in ("fastvec.training.saved_folder.save_adaptation", "fastvec.training.job.publish"):
        with monkeypatch.context() as patch:
            patch.setattr(place, die)
            with pytest.raises(KeyboardInterrupt):
                adapt(tmp_path / "out", tiny_llama, lr=5e-3)
        assert not (tmp_path / "out").exists()
    report = adapt(tmp_path / "out", tiny_llama, lr=5e-3)
    assert losses(tmp_path / "out") == losses(mntp[0])
    assert report.loss_last == mntp[1].loss_last
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (tmp_path / "out", mntp[0])]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_overwrite_replaces_another_jobs_output_once_the_new_one_is_whole(tiny_llama: Path, tmp_path: Path) -> None:
    adapt(tmp_path / "out", tiny_llama, steps=1)
    with pytest.raises(InterruptedRunError):
        adapt(tmp_path / "out", tiny_llama, steps=2, overwrite=True, stop_signal=lambda: signal.SIGTERM)
    assert len(losses(tmp_path / "out")) == 1
    adapt(tmp_path / "out", tiny_llama, steps=2, overwrite=True)
    assert len(losses(tmp_path / "out")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_that_are_not_ours_are_never_touched(tiny_llama: Path, tmp_path: Path) -> None:
    for name, error in (
        ("out", "out is a folder that fastvec did not make"),
        ("out.part", "out.part is a folder that"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "diary.txt").write_text("mine")
        with pytest.raises(RefusedError, match=error):
            adapt(tmp_path / "out", tiny_llama, overwrite=name == "out")
        assert (folder / "diary.txt").read_text() == "mine"
        (folder / "diary.txt").unlink()
        folder.rmdir()


def test_two_runs_are_kept_from_one_output(tiny_llama: Path, tmp_path: Path) -> None:
    plan_running = tmp_path / "out"

    def run_again(_: AdaptProgress) -> None:
        with pytest.raises(RefusedError, match="is locked by a running process"):
            adapt(plan_running, tiny_llama, steps=2)

    adapt(plan_running, tiny_llama, steps=2, progress=run_again)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"objective": "simcse", "instruction": "\udcff"}, UsageError, r"the instruction '\\udcff' is not valid UTF-8"),
        ({"mask_token": "\udcff"}, UsageError, r"--mask-token '\\udcff' is not valid UTF-8"),
        ({"objective": "clm"}, UsageError, "unknown objective 'clm': choose mntp, simcse, contrastive"),
        ({"temperature": 0.1}, UsageError, "--temperature does not apply to --objective mntp"),
        ({"full": True, "lora_r": 4}, UsageError, "--lora-r and --full were both given"),
        ({"full": True, "merge": True}, UsageError, "--full and --merge were both given"),
        ({"adapters": ["some/adapter"]}, UsageError, "an adapter can name only one base, .* or the adapter as --model"),
        ({"lr": -1.0}, UsageError, "--lr -1.0 is out of range: give 0.0 or more"),
        ({"hold_out": 0.9}, UsageError, "--hold-out 0.9 is out of range: give 0.0 to 0.5"),
        ({"schedule": "steps"}, UsageError, "--schedule 'steps' is not known: choose linear, cosine"),
        ({"dtype": "float16"}, UsageError, "training in float16 is not supported"),
        ({"max_length": 4096}, UsageError, "--max-length 4096 is out of range: .* has 512 positions"),
        ({"mask_token": "[BLANK]"}, UsageError, r"--mask-token cannot be used: '\[BLANK\]' is not one of its tokens"),
        ({"eval_every": 0}, UsageError, "--eval-every 0 is out of range"),
        ({"data": []}, UsageError, "no data was given"),
        ({"column": "body"}, InputError, "there is no column 'body'"),
        ({"data": ["nowhere.parquet"]}, InputError, "nowhere.parquet: no such file"),
        ({"objective": "simcse", "batch_size": 1}, UsageError, "--batch-size 1 leaves no other text as a negative: "),
        ({"batch_size": 10_000}, InputError, "too little data: it has .* a batch needs 10000: lower --batch-size"),
        ({"model": "nowhere/at/all"}, ModelError, "no such folder"),
        (
            {"lr": 1e30},
            ModelError,
            "the held-out loss is nan at step 1: lower --lr or .* and start over with --overwrite",
        ),
        ({"lr": 1e30, "hold_out": 0.0}, ModelError, "the loss is nan at step 2: lower --lr"),
        ({"lr": 1e30, "steps": 1}, ModelError, "the held-out loss is nan at step 1: lower --lr"),
        ({"output": "/proc/out"}, OutputError, "/proc"),
        ({"output": "."}, OutputError, r"^\. has no name of its own: .* give its name with -o"),
        ({"output": "/"}, OutputError, "^/ has no name of its own"),
        ({"output": "some/.."}, OutputError, r"^some/\.\. has no name of its own"),
        (
            {"objective": "contrastive", "column": None, "query": "title"},
            UsageError,
            "--objective contrastive needs --positive: name the column",
        ),
        (
            {"objective": "contrastive", "column": None, "query": "title", "positive": "id"},
            InputError,
            "column 'id' is int64, not text",
        ),
    ],
)
def test_a_failed_run_is_one_line_and_leaves_no_output(
    tiny_llama: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        adapt(tmp_path / "out", **{"model": tiny_llama, **options})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_running_out_of_memory_names_the_remedy(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr("fastvec.training.objectives.mntp.TokenTask.learn", run_out)
        with pytest.raises(ModelError, match="cpu ran out of memory with 4 texts at a time: give --grad-cache 2"):
            adapt(tmp_path / "out", tiny_llama)
    adapt(tmp_path / "out", tiny_llama, grad_cache=2)
    assert len(losses(tmp_path / "out")) == 6


@pytest.mark.slow
def test_dropout_that_an_architecture_brings_along_is_left_out(tmp_path: Path) -> None:
    """Otherwise two runs would differ, or a layer would raise an error; gpt2's config has three kinds of dropout."""
    base = save_decoder(tmp_path / "gpt2", "gpt2", n_embd=64, n_layer=2, n_head=4, n_positions=128)
    for name in ("one", "two"):
        adapt(tmp_path / name, base, steps=2)
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert json.loads((base / "config.json").read_text())["resid_pdrop"] == 0.1
