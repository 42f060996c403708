"""The bundled model: other tools open it, it is the default, and texts of like meaning are nearest."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

import fastvec
from fastvec import Encoder
from fastvec.checkpoints.bundled import BETTER, NAME, bundled_model
from fastvec.checkpoints.hub import locate
from fastvec.errors import UsageError
from tests.helpers.tiny import SENTENCES

PAIRS = [
    ("A man is playing the guitar.", "Somebody makes music on an instrument."),
    ("The bank raised its interest rates.", "Borrowing money costs more now."),
    ("Whales are mammals that live in the sea.", "Some animals of the ocean breathe air."),
    ("How do I get to the railway station?", "Where does the train leave from?"),
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.from_pretrained(dtype="float32", device="cpu")


def test_what_means_the_same_is_nearest(encoder: Encoder) -> None:
    vectors = encoder.encode([text for pair in PAIRS for text in pair])
    scores = vectors[::2] @ vectors[1::2].T
    assert scores.argmax(axis=1).tolist() == [0, 1, 2, 3]
    assert scores.argmax(axis=0).tolist() == [0, 1, 2, 3]


def test_it_is_a_bidirectional_decoder_and_takes_every_text(encoder: Encoder) -> None:
    assert encoder.settings.bidirectional
    vectors = encoder.encode([*SENTENCES, "", " ", "\U0001f600", "word " * 5000])
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_runs_in_half_precision(encoder: Encoder, dtype: str) -> None:
    """Half precision is the default on GPUs and on CPUs that multiply bfloat16."""
    vectors = Encoder.from_pretrained(dtype=dtype, device="cpu").encode(SENTENCES)
    assert (vectors * encoder.encode(SENTENCES)).sum(axis=1).min() > 0.999


def test_sentence_transformers_and_transformers_give_the_same_vectors(encoder: Encoder) -> None:
    expected = encoder.encode(SENTENCES)
    other = SentenceTransformer(str(bundled_model()), device="cpu", model_kwargs={"dtype": torch.float32})
    np.testing.assert_allclose(other.encode(SENTENCES), expected, atol=1e-5)
    model = AutoModel.from_pretrained(bundled_model(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(bundled_model())
    with torch.no_grad():
        states = model(**tokenizer(SENTENCES[:1], return_tensors="pt")).last_hidden_state[0]
    vector = other[2]({"sentence_embedding": states.mean(dim=0, keepdim=True)})["sentence_embedding"][0]
    np.testing.assert_allclose(torch.nn.functional.normalize(vector, dim=0).detach(), expected[0], atol=1e-5)


def test_it_is_small_and_says_nothing_of_where_it_was_made() -> None:
    files = [path for path in bundled_model().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    for path in files:
        if path.suffix == ".json":
            assert "/work" not in path.read_text()
            assert "/home" not in path.read_text()


def test_without_a_model_it_is_used_and_the_summary_names_better_ones(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": SENTENCES}), tmp_path / "corpus.parquet")
    command = [sys.executable, "-m", "fastvec", "embed", "corpus.parquet", "-o", "vecs.arrow"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    summary, note = done.stderr.splitlines()[-2:]
    assert summary.startswith("5 rows to vecs.arrow in ")
    assert note.startswith(f"used the bundled {NAME}")
    assert all(name in note for name in BETTER)
    with pa.memory_map(str(tmp_path / "vecs.arrow")) as source:
        assert pa.ipc.open_file(source).schema.metadata[b"fastvec.model"] == NAME.encode()


def test_its_name_is_one_of_a_model_like_any_other(tmp_path: Path) -> None:
    assert locate(NAME) == (bundled_model(), None)
    with pytest.raises(UsageError, match="only hub ids have one"):
        Encoder.from_pretrained(revision="main")
    pq.write_table(pa.table({"text": SENTENCES * 9, "v": np.eye(45, 256).tolist()}), tmp_path / "v.parquet")
    fastvec.adapt(
        objective="distil",
        model=NAME,
        data=[tmp_path / "v.parquet"],
        vectors="v",
        output=tmp_path / "out",
        steps=1,
        batch_size=4,
        device="cpu",
    )
    assert Encoder.from_pretrained(tmp_path / "out").dims == 256
