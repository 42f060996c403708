"""Tests of `fastvec.mteb`: tasks of each kind on local files, with scores computed again here, if mteb is installed."""

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import v_measure_score
from transformers import AutoModel

from fastvec import Encoder
from fastvec.checkpoints.bundled import bundled_model
from fastvec.errors import UsageError
from fastvec.mteb import FastvecEncoder
from tests import ARTICLES, ROOT
from tests.helpers.checkpoints import (
    FLOAT32_ROUNDING,
    copy,
    edit_json,
    last_token_folder,
    save_to_hub_cache,
    use_hub_cache,
)
from tests.helpers.mteb_tasks import (
    COUNT,
    average_precision,
    candidates,
    encode,
    loader,
    make_pairs,
    make_retrieval,
    make_task,
    paired,
    rankings,
    read_labeled,
    read_relevance,
    scores_of,
    spearman,
    table,
    write_data,
)
from tests.helpers.tiny import SENTENCES, save_decoder

PROMPTS = {"query": "find: ", "document": "text: ", "STS": "compare: ", "Retrieval-query": "title: "}
ROUNDED = 1e-5  # mteb rounds the scores of retrieval to five digits
# what mteb and its libraries warn about themselves
warns = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def mteb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTEB_CACHE", str(tmp_path_factory.mktemp("mteb")))
        yield pytest.importorskip("mteb", reason="mteb is not installed: it is in the extra mteb")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def mini(mteb: Any) -> FastvecEncoder:
    """The bundled model, whose similarities differ enough not to be tied."""
    return FastvecEncoder.from_pretrained(dtype="float32", device="cpu")


@pytest.fixture
def prompted(mteb: Any, llama: Path) -> Path:
    """A sentence-transformers folder with prompts."""
    settings = {"prompts": PROMPTS | {"other": "other: "}, "default_prompt_name": "other"}
    edit_json(last_token_folder(llama) / "config_sentence_transformers.json", **settings)
    return llama


@warns
def test_sts(mteb: Any, mini: FastvecEncoder, folder: Path) -> None:
    cosines, grades = paired(mini.encoder, folder)
    found = scores_of(mteb, mini, make_pairs(mteb, folder, "STS", "cosine_spearman"))
    expected = spearman(cosines, grades)

    assert 0.1 < expected < 0.9
    assert found["main_score"] == pytest.approx(expected, abs=ROUNDED)
    assert found["spearman"] == pytest.approx(expected, abs=ROUNDED)  # by `similarity_pairwise`


@warns
def test_pair_classification(mteb: Any, mini: FastvecEncoder, folder: Path) -> None:
    cosines, grades = paired(mini.encoder, folder)
    labels = (grades > 1)[np.argsort(-cosines)].tolist()
    found = scores_of(mteb, mini, make_pairs(mteb, folder, "PairClassification", "similarity_ap"))

    assert found["main_score"] == pytest.approx(average_precision(labels, sum(labels)), abs=ROUNDED)


@warns
@pytest.mark.parametrize("prompts", [{}, {"query": "find: ", "document": "text: "}])
def test_retrieval(mteb: Any, folder: Path, tmp_path: Path, prompts: dict[str, str]) -> None:
    model = copy(bundled_model(), tmp_path / "mini")
    rules = json.loads((model / "fastvec.json").read_text())["encoder"]
    edit_json(model / "fastvec.json", encoder=rules | {"prompts": prompts})
    encoder = FastvecEncoder.from_pretrained(model, dtype="float32", device="cpu")
    found = scores_of(mteb, encoder, make_retrieval(mteb, folder, "Retrieval", "ndcg_at_10"))

    gains, recalls, reciprocals = [], [], []
    relevance = read_relevance(folder)
    for query, ranked in rankings(encoder.encoder, folder).items():
        grades = [relevance[query].get(name, 0) for name in ranked]
        gain = sum(grade / np.log2(rank + 2) for rank, grade in enumerate(grades[:10]))
        gains.append(gain / (2 / np.log2(2) + 1 / np.log2(3)))  # the ideal: grades 2 and 1 in the first two ranks
        recalls.append(np.count_nonzero(grades[:20]) / 2)
        reciprocals.append(next((1 / (rank + 1) for rank in range(10) if grades[rank]), 0))
    lists = {"ndcg_at_10": gains, "recall_at_20": recalls, "mrr_at_10": reciprocals}
    expected = {name: np.mean(values) for name, values in lists.items()}
    assert all(0.1 < value < 0.99 for value in expected.values())
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=ROUNDED)


@warns
def test_reranking(mteb: Any, mini: FastvecEncoder, folder: Path) -> None:
    found = scores_of(mteb, mini, make_retrieval(mteb, folder, "Reranking", "map_at_1000"))
    relevance, ranked = read_relevance(folder), rankings(mini.encoder, folder, candidates(folder))
    precisions = [average_precision([name in relevance[query] for name in names], 2) for query, names in ranked.items()]

    assert found["main_score"] == pytest.approx(np.mean(precisions), abs=ROUNDED)


@warns
def test_classification(mteb: Any, mini: FastvecEncoder, folder: Path) -> None:
    texts, labels = read_labeled(folder)
    split = {"train": slice(0, 60), "test": slice(60, COUNT)}
    data = {name: table(text=texts[part], label=labels[part]) for name, part in split.items()}
    # each experiment trains on all rows
    task = make_task(mteb, "Classification", data, "accuracy", samples_per_label=60, n_experiments=2)
    found = scores_of(mteb, mini, task)["main_score"]

    vectors = mini.encoder.encode(texts)
    classifier = LogisticRegression(max_iter=100).fit(vectors[split["train"]], labels[split["train"]])
    assert found == pytest.approx(classifier.score(vectors[split["test"]], labels[split["test"]]))


@warns
def test_clustering(mteb: Any, mini: FastvecEncoder, folder: Path) -> None:
    texts, labels = read_labeled(folder)
    data = {"test": table(sentences=texts, labels=labels)}
    options: dict[str, Any] = {"max_fraction_of_documents_to_embed": None, "n_clusters": 3}
    found = scores_of(mteb, mini, make_task(mteb, "Clustering", data, "v_measure", **options))

    vectors, sample = mini.encoder.encode(texts), random.Random(42)
    expected = []
    for _ in range(3):
        drawn = sample.choices(range(COUNT), k=16_384)  # as mteb
        clusters = MiniBatchKMeans(3, batch_size=512, n_init=1, random_state=42).fit_predict(vectors[drawn])
        expected.append(v_measure_score(np.array(labels)[drawn], clusters))
    assert 0.1 < np.mean(expected) < 0.99
    assert found["main_score"] == pytest.approx(np.mean(expected), abs=ROUNDED)


@warns
def test_scores_are_those_of_fastvec_eval(mteb: Any, mini: FastvecEncoder, folder: Path) -> None:
    evaluation = pytest.importorskip("fastvec.evaluation.evaluate")
    report = evaluation.evaluate(mini.encoder, baselines=False, beir=folder, pairs=folder / "pairs.csv")
    found = scores_of(mteb, mini, make_retrieval(mteb, folder, "Retrieval", "ndcg_at_10"))
    found |= scores_of(mteb, mini, make_pairs(mteb, folder, "STS", "spearman"))
    names = {"nDCG@10": "ndcg_at_10", "recall@100": "recall_at_100", "MRR@10": "mrr_at_10", "Spearman": "spearman"}
    scores = {score.measure: score.value for score in report.scores}
    assert scores == pytest.approx({measure: found[name] for measure, name in names.items()}, abs=ROUNDED)

    texts, labels = read_labeled(folder)
    data = {"test": table(sentences=[texts], labels=[labels])}
    task = make_task(mteb, "Clustering", data, "v_measure", class_name="ClusteringLegacy")
    v_measures = pytest.importorskip("fastvec.evaluation.clustering").v_measures
    expected = v_measures(mini.encoder.encode(texts), [str(label) for label in labels], seeds=[42])
    assert scores_of(mteb, mini, task)["main_score"] == pytest.approx(expected[0])


@warns
def test_the_recipe_for_own_data(mteb: Any, mini: FastvecEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    variables: dict[str, Any] = {"__name__": "recipe"}
    for code in re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/mteb.md").read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(code, "docs/mteb.md", "exec"), variables)

    articles = pq.read_table(ARTICLES).to_pylist()
    queries = mini.encoder.encode([article["title"] for article in articles])
    documents = mini.encoder.encode([article["text"].partition("\n\n")[2].strip() for article in articles])
    scores = queries @ documents.T
    ranks = (scores > scores.diagonal()[:, None]).sum(axis=1)
    assert variables["score"] == pytest.approx(np.mean(np.where(ranks < 10, 1 / np.log2(ranks + 2), 0)), abs=ROUNDED)


@warns
def test_every_text_task_of_mteb_runs(mteb: Any, tiny_llama: Path) -> None:
    encoder = FastvecEncoder.from_pretrained(tiny_llama, dtype="float32", device="cpu")
    results = mteb.mock_run(encoder)

    assert len([name for name, result in results.items() if result is not None]) > 20
    assert results.all_passed, results.to_markdown()


@warns
@pytest.mark.parametrize("kind", ["Retrieval", "Reranking", "STS", "PairClassification"])
@pytest.mark.parametrize("side", ["query", "document", None])
def test_prompts_are_those_of_sentence_transformers(mteb: Any, prompted: Path, kind: str, side: str | None) -> None:
    task, prompt_type = make_task(mteb, kind, {}, "score"), side and mteb.types.PromptType(side)
    model = SentenceTransformer(str(prompted), device="cpu")
    model.tokenizer.pad_token = "</s>"
    wrapper = mteb.models.sentence_transformer_wrapper.SentenceTransformerEncoderWrapper(model)
    names = {"hf_split": "test", "hf_subset": "default", "task_metadata": task.metadata, "prompt_type": prompt_type}
    expected = np.asarray(wrapper.encode(loader(SENTENCES), **names))

    encoder = FastvecEncoder.from_pretrained(prompted, dtype="float32", device="cpu")
    vectors = encode(encoder, SENTENCES, task, prompt_type)
    assert np.abs(vectors - expected).max() <= FLOAT32_ROUNDING * max(1.0, np.abs(expected).max())
    name = {"STS": "STS", "Retrieval": "Retrieval-query" if side == "query" else side}.get(kind, side)
    assert np.array_equal(vectors, encoder.encoder.encode(SENTENCES, prompt_name=name or "other"))


@pytest.mark.parametrize(
    ("prompt", "side", "instruction"),
    [
        ("Find it.", "query", "Find it."),
        ({"query": "Find it."}, "query", "Find it."),
        ({"query": "Find it."}, None, "Find it."),
        (None, "query", "Retrieve text based on user query."),  # mteb's own for all tasks of the type
        ("Find it.", "document", None),
    ],
)
def test_instructions_precede_all_but_documents(
    mteb: Any, prompted: Path, prompt: Any, side: str | None, instruction: str | None
) -> None:
    template = "Instruct: {instruction}\nQuery: {} "
    encoder = FastvecEncoder.from_pretrained(prompted, instruction_template=template)
    task = make_task(mteb, "Retrieval", {}, "score", prompt=prompt)
    vectors = encode(encoder, SENTENCES, task, side and mteb.types.PromptType(side))

    before = PROMPTS["document"] if instruction is None else f"Instruct: {instruction}\nQuery: {{}} "
    assert np.array_equal(vectors, encoder.encoder.encode(SENTENCES, before))


def test_texts_of_many_batches_are_encoded_together(
    mteb: Any, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[int]
) -> None:
    monkeypatch.setattr("fastvec.mteb.ENCODE_ROWS", 7)
    encoder, task = FastvecEncoder.from_pretrained(tiny_llama), make_task(mteb, "STS", {}, "score")
    texts = [f"{sentence} {number}" for number in range(4) for sentence in SENTENCES]
    vectors = encode(encoder, texts, task)

    assert encoded == [7, 7, 6]
    assert np.abs(vectors - encoder.encoder.encode(texts)).max() <= FLOAT32_ROUNDING
    assert encode(encoder, [], task).shape == (0, 64)


@pytest.mark.parametrize("function", ["cosine", "dot", "euclidean", "manhattan"])
def test_vectors_are_compared_as_the_checkpoint_says(mteb: Any, prompted: Path, function: str) -> None:
    edit_json(prompted / "config_sentence_transformers.json", similarity_fn_name=function)
    encoder = FastvecEncoder.from_pretrained(prompted)
    a, b = np.random.default_rng(0).normal(size=(2, 5, 64)).astype(np.float32)
    similarities = encoder.similarity(a, b)

    assert np.array_equal(similarities.numpy(), encoder.encoder.similarity(a, b))
    pairwise = encoder.similarity_pairwise(a, torch.from_numpy(b))
    assert torch.allclose(pairwise, similarities.diagonal(), rtol=1e-5, atol=1e-5)
    assert encoder.similarity(a[0], b[0]).shape == (1, 1)
    assert encoder.similarity_pairwise(a[0], b[0]).shape == (1,)
    assert encoder.mteb_model_meta.similarity_fn_name.value == function


def test_the_description_says_what_is_known(mteb: Any, prompted: Path, tiny_llama: Path) -> None:
    meta = FastvecEncoder.from_pretrained(prompted, dims=32, max_length=99).mteb_model_meta
    parameters = sum(parameter.numel() for parameter in AutoModel.from_pretrained(prompted).parameters())

    assert (meta.name, meta.embed_dim, meta.max_tokens, meta.n_parameters) == ("local/llama", 32, 99, parameters)
    assert (meta.modalities, meta.framework, meta.use_instructions) == (["text"], ["PyTorch"], True)
    assert (meta.license, meta.open_weights, meta.training_datasets, meta.reference) == (None, None, None, None)
    assert not FastvecEncoder.from_pretrained(tiny_llama).mteb_model_meta.use_instructions


def test_a_model_of_the_hub_keeps_its_name(mteb: Any, tiny_llama: Path, tmp_path: Path, monkeypatch: Any) -> None:
    save_to_hub_cache(tiny_llama, use_hub_cache(tmp_path / "hub", monkeypatch))
    meta = FastvecEncoder.from_pretrained("org/tiny").mteb_model_meta

    assert (meta.name, meta.reference) == ("org/tiny", "https://huggingface.co/org/tiny")
    assert meta.revision == FastvecEncoder.from_pretrained(tiny_llama).mteb_model_meta.revision


def test_the_revision_is_that_of_the_vectors(mteb: Any, prompted: Path, tmp_path: Path) -> None:
    def revision(model: Path, **options: Any) -> str:
        return str(FastvecEncoder.from_pretrained(model, device="cpu", **options).mteb_model_meta.revision)

    same = copy(prompted, tmp_path / "same")
    changed = {name: copy(prompted, tmp_path / name) for name in ("weights", "prompts", "similarity")}
    save_decoder(changed["weights"], "llama", seed=1)
    edit_json(changed["prompts"] / "config_sentence_transformers.json", prompts=PROMPTS | {"other": "another: "})
    edit_json(changed["similarity"] / "config_sentence_transformers.json", similarity_fn_name="dot")
    revisions = [
        revision(prompted),
        *map(revision, changed.values()),
        revision(prompted, dims=32),
        revision(prompted, max_length=32),
        revision(prompted, normalize=True),
        revision(prompted, instruction_template="{instruction}: "),
    ]

    assert revision(same) == revisions[0]
    assert len(set(revisions)) == len(revisions)


@warns
def test_results_are_cached_by_revision(mteb: Any, tiny_llama: Path, folder: Path, tmp_path: Path) -> None:
    task, cache = make_pairs(mteb, folder, "STS", "cosine_spearman"), mteb.ResultCache(tmp_path)
    revisions = set()
    for dims in (64, 8):
        encoder = FastvecEncoder.from_pretrained(tiny_llama, dims=dims)
        scores_of(mteb, encoder, task, cache)
        revisions.add(encoder.mteb_model_meta.revision)

    assert {path.parent.name for path in tmp_path.glob("results/local__llama/*/LocalSTS.json")} == revisions
    assert len(revisions) == 2


def test_what_is_not_a_text_is_refused(mteb: Any, tiny_llama: Path) -> None:
    encoder, task = FastvecEncoder.from_pretrained(tiny_llama), make_task(mteb, "STS", {}, "score")
    names = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default"}
    with pytest.raises(UsageError, match="LocalSTS has inputs without a text, only image, id: choose"):
        encoder.encode([{"image": [], "id": []}], **names)
    with pytest.raises(UsageError, match="precision 'int8' was asked for, and vectors are float32"):
        encoder.encode(loader(SENTENCES), precision="int8", **names)


def test_a_template_has_a_place_for_the_instruction(tiny_llama: Path) -> None:
    with pytest.raises(UsageError, match=r"instruction_template 'Query: ' has no \{instruction\}"):
        FastvecEncoder(Encoder.from_pretrained(tiny_llama), instruction_template="Query: ")


def test_without_mteb_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(UsageError, match=r"needs the package mteb: pip install 'fastvec\[mteb\]'"):
        FastvecEncoder.from_pretrained()
