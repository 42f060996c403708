import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import nn

import fastvec
from fastvec import Encoder
from fastvec.corpus.reader import Chunk
from fastvec.errors import InputError, InterruptedRunError, ModelError, UsageError
from fastvec.report import AdaptReport
from fastvec.system.libraries import quiet_libraries
from fastvec.training import stream
from fastvec.training.learner import Learner
from fastvec.training.metrics import read_metrics
from fastvec.training.objectives.distillation import DistilExample, DistilTask, fitted_dense
from fastvec.training.objectives.losses import NEIGHBOR_WEIGHT, distillation_reference, neighbor_divergence_reference
from fastvec.training.objectives.readout import Readout
from fastvec.training.objectives.task import Batch
from tests import ARTICLES
from tests.helpers.tiny import SENTENCES, save_decoder
from tests.training.steps import PlainPass, assert_same_gradients, gradients, headed_model, text_tokenizer
from tests.training.test_plan import plan

WIDTH = 24
VECTORS = np.random.default_rng(0).standard_normal((7, WIDTH)).astype(np.float16)
SMALL = {"steps": 6, "batch_size": 8, "max_length": 24, "dtype": "float32", "device": "cpu", "lr": 2e-3}


def task(folder: Path, readout: Readout, *, at_once: int | None = None) -> DistilTask:
    tokenizer = text_tokenizer(folder, max_length=24, pooled="text")
    return DistilTask(
        tokenizer, readout, vectors="v", width=WIDTH, at_once=at_once, file_of=lambda row: f"{row}.parquet"
    )


def chunk(texts: list[str | None], vectors: pa.Array) -> Chunk:
    kept = pa.RecordBatch.from_arrays([vectors], ["v"])
    return Chunk(index=0, first_row=0, texts=pa.array(texts, pa.large_string()), kept=kept, repaired=0)


def taught(folder: Path) -> list[DistilExample]:
    vectors = pa.array(VECTORS[:5].tolist(), pa.list_(pa.float16(), WIDTH))
    return task(folder, Readout("mean")).examples_of(chunk(list(SENTENCES), vectors), np.ones(5, dtype=bool))


@pytest.mark.parametrize("type", [pa.list_(pa.float16(), WIDTH), pa.large_list(pa.float32()), pa.list_(pa.float64())])
def test_rows_without_a_text_or_a_direction_are_left_out(tiny_llama: Path, type: pa.DataType) -> None:
    rows: list[list[float] | None] = VECTORS.astype(float).tolist()
    rows[1], rows[2], rows[3] = None, [0.0] * WIDTH, [np.inf] * WIDTH
    texts = ["whales", "no vector", "nowhere", "too far", None, " ", "trains"]
    found = task(tiny_llama, Readout("mean")).examples_of(chunk(texts, pa.array(rows, type)), np.ones(7, dtype=bool))
    assert len(found) == 2
    np.testing.assert_array_equal([one.target for one in found], VECTORS[[0, 6]].astype(np.float32))
    admitted = np.arange(7) > 0
    assert len(task(tiny_llama, Readout("mean")).examples_of(chunk(texts, pa.array(rows, type)), admitted)) == 1


def test_a_vector_of_another_width_is_told_with_its_file(tiny_llama: Path) -> None:
    """Also if the lengths of several wrong vectors add up to a multiple of the width."""
    lengths = (WIDTH, 0, WIDTH - 4, WIDTH + 4)
    vectors = pa.array([[1.0] * length for length in lengths], pa.list_(pa.float32()))
    message = "^2.parquet: a vector in column 'v' has 20 dimensions: expected 24, as in the first rows"
    with pytest.raises(InputError, match=message):
        task(tiny_llama, Readout("mean")).examples_of(chunk(list("abcd"), vectors), np.ones(4, dtype=bool))


def test_an_empty_list_is_no_vector(tiny_llama: Path) -> None:
    vectors = pa.array([[1.0] * WIDTH, [], None, [2.0] * WIDTH], pa.list_(pa.float32()))
    found = task(tiny_llama, Readout("mean")).examples_of(chunk(list("abcd"), vectors), np.ones(4, dtype=bool))
    assert [one.target[0] for one in found] == [1.0, 2.0]


@pytest.mark.parametrize("at_once", [None, 2])
def test_in_any_parts_the_gradients_are_those_of_one_text_at_a_time(tiny_llama: Path, at_once: int | None) -> None:
    examples, dense = taught(tiny_llama), nn.Linear(64, WIDTH, bias=False)
    readout, model = Readout("mean", dense), PlainPass(headed_model(tiny_llama).model)
    model.model.add_module("dense", dense)
    loss = task(tiny_llama, readout, at_once=at_once).learn(Batch(step=0, examples=examples, rank=0, ranks=1), model)
    found = gradients(model.model)
    assert "dense.weight" in found
    vectors = torch.cat([readout.encode([one.text], [0], model) for one in examples])
    targets = torch.from_numpy(np.stack([one.target for one in examples]))
    neighbors = neighbor_divergence_reference(vectors, targets)
    expected = distillation_reference(vectors, targets) + NEIGHBOR_WEIGHT * neighbors
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(found, gradients(model.model), 1e-5)


def learner(model: Path, folder: Path, **options: Any) -> Learner:
    """Return what a run with the data in `folder`/v.parquet trains with."""
    data = [folder / "v.parquet"]
    with quiet_libraries():
        return Learner(plan(model, objective="distil", data=data, full=True, max_length=8, **options), folder / "part")


def test_half_of_a_runs_batches_have_few_topics(base: Path, tmp_path: Path) -> None:
    """Through the plan and the learner: texts named after the axis that their vectors have."""
    axes = np.random.default_rng(0).permutation(np.repeat(np.arange(16), 32))
    vectors = pa.array((np.eye(16)[axes] + 0.01).tolist(), pa.list_(pa.float32(), 16))
    pq.write_table(pa.table({"text": [str(axis) for axis in axes], "embedding": vectors}), tmp_path / "v.parquet")
    source = learner(base, tmp_path, batch_size=16, hold_out=0.0).batches
    found = [batch.examples for batch in islice(source, 32)]
    topics = [len({int(np.argmax(one.target)) for one in examples}) for examples in found]
    few, many = sorted(topics)[:16], sorted(topics)[16:]
    assert max(few) <= 3  # several, where a split cuts through a topic
    assert min(many) >= 5


def test_a_block_without_an_example_is_passed_over(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three row groups have no vectors; in some epochs one comes last, after a full block."""
    monkeypatch.setattr(stream, "BLOCK_EXAMPLES", 4)
    vectors = [*np.eye(4, 64).tolist(), *[None] * 8]
    rows = {"text": ["a text"] * len(vectors), "embedding": pa.array(vectors, pa.list_(pa.float32()))}
    pq.write_table(pa.table(rows), tmp_path / "v.parquet", row_group_size=4)
    source = learner(base, tmp_path, batch_size=4, hold_out=0.0).batches
    found = [{int(np.argmax(one.target)) for one in batch.examples} for batch in islice(source, 12)]
    assert found == [{0, 1, 2, 3}] * 12


def test_a_small_corpus_is_read_once_for_the_dense_layer(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []

    def counted(examples: list[DistilExample], *rest: Any) -> nn.Linear:
        fitted.extend(int(np.argmax(one.target)) for one in examples)
        return fitted_dense(examples, *rest)

    monkeypatch.setattr("fastvec.training.learner.fitted_dense", counted)
    vectors = pa.array(np.eye(6, 24).tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table({"text": ["a text"] * 6, "embedding": vectors}), tmp_path / "v.parquet")
    learner(base, tmp_path, batch_size=2, hold_out=0.0)
    assert sorted(fitted) == [0, 1, 2, 3, 4, 5]


def test_the_dense_layer_starts_as_the_map_that_fits_best(tiny_llama: Path) -> None:
    """The expected map is a ridge regression, solved as least squares with rows of √λ added."""
    model = PlainPass(headed_model(tiny_llama).model)
    examples = [one for _ in range(16) for one in taught(tiny_llama)]
    with torch.no_grad():
        hidden = Readout("mean").encode([one.text for one in examples], range(80), model).numpy().astype(float)
    targets = np.stack([one.target for one in examples]).astype(float)
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    penalty = np.sqrt(1e-3 * 80 * np.square(hidden).mean()) * np.eye(64)
    solved = np.linalg.lstsq(np.vstack([hidden, penalty]), np.vstack([targets, np.zeros((64, WIDTH))]), rcond=None)[0]
    dense = fitted_dense(examples, Readout("mean"), model)
    np.testing.assert_allclose(dense.weight.detach().numpy(), solved.T, atol=1e-5)
    assert dense.weight.requires_grad


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder without a BOS, so that sentence-transformers pools the same tokens."""
    return save_decoder(tmp_path_factory.mktemp("models") / "base", "llama", bos=False)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Titles with the vectors of a static teacher: the sum of a random vector per letter."""
    titles = pq.read_table(ARTICLES)["title"].to_pylist()
    letters = np.random.default_rng(0).standard_normal((128, WIDTH))
    given = np.stack([sum(letters[ord(letter) % 128] for letter in title) for title in titles])
    column = pa.FixedSizeListArray.from_arrays(pa.array(given.ravel().astype(np.float32)), WIDTH)
    path = tmp_path_factory.mktemp("data") / "vectors.parquet"
    pq.write_table(pa.table({"title": titles, "embedding": column}), path)
    return path


def adapt(output: Path, model: Path, data: Path, **options: Any) -> AdaptReport:
    arguments = {"objective": "distil", "model": model, "data": [data], "output": output}
    return fastvec.adapt(**{**arguments, **SMALL, **options})


@pytest.fixture(scope="module")
def adapter(base: Path, vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AdaptReport]:
    folder = tmp_path_factory.mktemp("out") / "adapter"
    return folder, adapt(folder, base, vectors, steps=20, batch_size=32)


def test_a_student_comes_nearer_to_its_teacher(adapter: tuple[Path, AdaptReport], vectors: Path) -> None:
    folder, report = adapter
    assert report.loss_first is not None
    assert report.loss_last is not None
    assert report.loss_last < 0.8 * report.loss_first
    table = pq.read_table(vectors)
    encoder = Encoder.from_pretrained(folder, dtype="float32")
    assert (encoder.dims, encoder.settings.normalize) == (WIDTH, True)
    found = encoder.encode(table["title"].to_pylist())
    given = np.stack(table["embedding"].to_numpy())
    given /= np.linalg.norm(given, axis=1, keepdims=True)
    assert (found * given).sum(axis=1).mean() > 0.85
    assert not (folder / "llm2vec_config.json").exists()  # LLM2Vec has no Dense layer


@pytest.mark.parametrize("options", [pytest.param({"merge": True}, marks=pytest.mark.slow), {"full": True}])
def test_whole_weights_give_the_same_vectors_in_sentence_transformers(
    base: Path, vectors: Path, adapter: tuple[Path, AdaptReport], tmp_path: Path, options: dict[str, Any]
) -> None:
    adapt(tmp_path / "out", base, vectors, pool_tokens="all", steps=20, batch_size=32, **options)
    found = Encoder.from_pretrained(tmp_path / "out", dtype="float32", device="cpu").encode(SENTENCES)
    other = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(other.encode(SENTENCES), found, atol=1e-5)
    if "merge" in options:
        expected = Encoder.from_pretrained(adapter[0], dtype="float32", device="cpu").encode(SENTENCES)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("full", [None, True])
def test_a_run_that_was_stopped_goes_on_with_the_same_losses(
    base: Path, vectors: Path, tmp_path: Path, full: bool | None
) -> None:
    asked = iter([None, None, 15])
    with pytest.raises(InterruptedRunError, match="step 3 of 6"):
        adapt(tmp_path / "out", base, vectors, full=full, stop_signal=lambda: next(asked, 15))
    assert adapt(tmp_path / "out", base, vectors, full=full).resumed_steps == 3
    adapt(tmp_path / "whole", base, vectors, full=full)
    stopped, whole = (
        [row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in row]
        for name in ("out", "whole")
    )
    assert stopped == pytest.approx(whole, rel=1e-6)
    one, two = (Encoder.from_pretrained(tmp_path / name, dtype="float32") for name in ("out", "whole"))
    np.testing.assert_allclose(one.encode(SENTENCES), two.encode(SENTENCES), atol=1e-6)


def test_distilling_goes_on_where_an_earlier_distillation_ended(
    adapter: tuple[Path, AdaptReport], vectors: Path, tmp_path: Path
) -> None:
    folder, report = adapter
    again = adapt(tmp_path / "out", folder, vectors, lr=0.0)
    assert again.cosine_before == pytest.approx(report.cosine_after, abs=1e-6)
    with pytest.raises(ModelError, match="has Dense layers after its pooling: only --objective distil trains them"):
        adapt(tmp_path / "mntp", folder, vectors, objective="mntp", column="title")


def weights_of(folder: Path) -> int:
    """Count the weights of the adapter and the Dense layer saved in `folder`."""
    files = folder / "adapter_model.safetensors", folder / "2_Dense" / "model.safetensors"
    return sum(tensor.numel() for file in files for tensor in load_file(file).values())


@pytest.mark.slow
def test_a_teacher_of_the_same_width_needs_no_dense_layer(
    base: Path, vectors: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    titles = pq.read_table(vectors)["title"]
    teacher = Encoder.from_pretrained(base, dtype="float32", bidirectional=False)
    given = pa.array(list(teacher.encode(titles.to_pylist())), pa.list_(pa.float32(), 64))
    pq.write_table(pa.table({"title": titles, "wide": given}), tmp_path / "wide.parquet")
    report = adapt(tmp_path / "out", base, tmp_path / "wide.parquet", vectors="wide", steps=2)
    assert report.cosine_before is not None
    assert report.cosine_before > 0.3
    assert not (tmp_path / "out" / "2_Dense").exists()
    with caplog.at_level("INFO", logger="fastvec"):
        adapt(tmp_path / "narrow", base, vectors, steps=1)
    counted = re.findall(r"; ([\d,]+) of [\d,]+ weights are trained", caplog.text)
    assert [int(one.replace(",", "")) for one in counted] == [weights_of(tmp_path / "narrow")]
    with pytest.raises(ModelError, match="has Dense layers to 24 dimensions, and the vectors have 64"):
        adapt(tmp_path / "wider", tmp_path / "narrow", tmp_path / "wide.parquet", vectors="wide")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1.0, 2.0]), "column 'embedding' is double: expected vectors, lists of floating-point numbers"),
        (pa.array([[1], [2]], pa.list_(pa.int8(), 1)), "expected vectors, lists of floating-point numbers"),
        (pa.array([[1.0], [1.0, 2.0]]), "have 1 to 2 dimensions: expected vectors of one width"),
        (pa.array([None, []], pa.list_(pa.float32())), "have no vector: expected vectors of one width"),
    ],
)
def test_a_column_that_holds_no_vectors_is_refused(base: Path, tmp_path: Path, column: pa.Array, message: str) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "embedding": column}), tmp_path / "v.parquet")
    with pytest.raises(InputError, match=message):
        adapt(tmp_path / "out", base, tmp_path / "v.parquet")
    assert not list(tmp_path.glob("out*"))


def test_vectors_are_no_option_of_another_objective(base: Path, vectors: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--vectors does not apply to --objective simcse"):
        adapt(tmp_path / "out", base, vectors, objective="simcse", vectors="embedding")
