"""`fastvec search --index`: what FAISS and LanceDB find in the indexes, and that there is never half of one."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from fastvec import Encoder, embed
from fastvec.cli.entry import cli
from fastvec.errors import FastvecError, OutputError, RefusedError
from fastvec.output.vector_column import VectorDtype
from fastvec.retrieval import exact, index, recall
from fastvec.retrieval.index import IndexKind, write_index
from fastvec.retrieval.progress import IndexProgress
from fastvec.retrieval.recall import NEIGHBOURS, Neighbours, PresentVectors
from fastvec.vectors.stored import open_vectors
from tests import ARTICLES, ROOT
from tests.helpers.clustered import DIMS, Floats, clustered, write_vectors
from tests.helpers.outputs import contents

KINDS: list[IndexKind] = ["faiss", "lance"]
Compare = Callable[[str], None]


@pytest.fixture(autouse=True)
def compare(monkeypatch: pytest.MonkeyPatch) -> Compare:
    """Outputs of this file have no model; the returned function says how it would compare."""

    def by(similarity: str) -> None:
        settings = SimpleNamespace(checkpoint=SimpleNamespace(similarity=similarity, name="a model"))
        monkeypatch.setattr(index, "query_settings", lambda *_, **__: settings)

    by("cosine")
    return by


def nearest(scores: Floats, missing: tuple[int, ...]) -> list[set[int]]:
    scores = scores.copy()
    scores[:, list(missing)] = -np.inf
    return [set(row) for row in np.argsort(-scores, axis=1)[:, :NEIGHBOURS].tolist()]


def shared(found: list[set[int]], expected: list[set[int]]) -> float:
    return sum(len(a & b) for a, b in zip(found, expected, strict=True)) / (NEIGHBOURS * len(expected))


@pytest.mark.parametrize(
    ("most_of_hnsw", "name", "quantized"), [(1 << 20, "HNSW32", 0.0), (0, "IVF32,SQ8", 0.05)], ids=["HNSW", "IVF"]
)
def test_faiss_finds_the_nearest_by_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_of_hnsw: int, name: str, quantized: float
) -> None:
    monkeypatch.setattr(index, "HNSW_BYTES", most_of_hnsw)
    vectors, missing = clustered(1500), (0, 7, 1499)
    written = write_index(
        write_vectors(tmp_path / "v.arrow", vectors, missing=missing), tmp_path / "v.faiss", kind="faiss"
    )

    found: Any = faiss.read_index(str(tmp_path / "v.faiss"), faiss.IO_FLAG_MMAP_IFC)
    queries = clustered(1600)[1500:]  # of the same centers
    ids = found.search(queries, NEIGHBOURS)[1]

    assert found.ntotal == written.vectors == 1497
    assert (written.index, written.metric, written.without_vector) == (name, "cosine", 3)
    assert written.size_bytes == (tmp_path / "v.faiss").stat().st_size
    # other queries than those that it was measured with: 1,000 neighbours, of which 99% are expected; a deviation of
    # sqrt(1000 * 0.99 * 0.01) = 3 neighbours, taken five times
    assert shared([set(row) for row in ids.tolist()], nearest(queries @ vectors.T, missing)) > 0.975 - quantized
    assert written.recall is not None
    assert written.recall >= 0.99 - quantized
    inner: Any = faiss.downcast_index(found.index) if name == "HNSW32" else found
    stored = {"efSearch": inner.hnsw.efSearch} if name == "HNSW32" else {"nprobe": inner.nprobe}
    assert written.setting == stored


def test_few_vectors_are_all_compared(tmp_path: Path) -> None:
    vectors = clustered(200)
    written = write_index(
        write_vectors(tmp_path / "v.arrow", vectors, missing=(5,)), tmp_path / "v.faiss", kind="faiss"
    )

    found = faiss.read_index(str(tmp_path / "v.faiss"))

    assert (written.setting, written.recall) == ({}, None)
    size = f"{written.size_bytes / 1e6:.1f} MB"
    assert str(written) == f"{tmp_path / 'v.faiss'}: 199 vectors, Flat (cosine), {size}; 1 rows have no vector"
    ids = found.search(vectors, NEIGHBOURS)[1]
    assert [set(row) for row in ids.tolist()] == nearest(vectors @ vectors.T, (5,))


def test_ids_count_over_several_outputs(tmp_path: Path) -> None:
    first, second = clustered(40), clustered(60, seed=1)
    files = [
        write_vectors(tmp_path / "a.arrow", first, missing=(3,)),
        write_vectors(tmp_path / "b.arrow", second, missing=(0,)),
    ]

    written = write_index(files, tmp_path / "v.faiss", kind="faiss")

    ids = faiss.read_index(str(tmp_path / "v.faiss")).search(np.concatenate([first, second]), 1)[1][:, 0]
    present = [position for position in range(100) if position not in (3, 40)]
    assert written.vectors == 98
    assert ids[present].tolist() == present


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_faiss_compares_as_the_model_does(tmp_path: Path, compare: Compare, dtype: VectorDtype) -> None:
    vectors = clustered(100, unit=False)
    path = write_vectors(tmp_path / "v.arrow", vectors, dtype=dtype, normalize=False)
    query = 2 * clustered(1, seed=1)
    with open_vectors([path]) as opened:
        stored = np.concatenate([opened.floats(block) for block in opened.blocks(1000)])
    expected = {
        "cosine": (query @ (stored / np.linalg.norm(stored, axis=1, keepdims=True)).T)[0],
        "dot": (query @ stored.T)[0],
        "euclidean": ((query - stored) ** 2).sum(axis=1),
    }
    for similarity, scores in expected.items():
        compare(similarity)
        write_index(path, tmp_path / "v.faiss", kind="faiss", overwrite=True)
        found, ids = faiss.read_index(str(tmp_path / "v.faiss")).search(query, 100)
        assert found[0] == pytest.approx(scores[ids[0]], abs=1e-5)  # sums of 16 products up to 4 in float32
        assert np.all(np.diff(found[0] if similarity == "euclidean" else -found[0]) >= 0)


@pytest.mark.parametrize(("similarity", "dtype"), [("cosine", "float16"), ("dot", "float32"), ("euclidean", "float32")])
def test_lance_finds_the_nearest_with_its_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compare: Compare, similarity: str, dtype: VectorDtype
) -> None:
    compare(similarity)
    monkeypatch.setattr(recall, "QUERIES", 20)  # Lance takes 10 ms for each
    vectors, missing = clustered(1100, unit=False), (0, 7)
    path = write_vectors(tmp_path / "v.arrow", vectors, missing=missing, dtype=dtype, normalize=False)

    written = write_index(path, tmp_path / "v.lance", kind="lance")

    table = lancedb.connect(tmp_path).open_table("v")
    [built] = table.list_indices()
    metric = {"euclidean": "l2"}.get(similarity, similarity)
    statistics = table.index_stats(built.name)
    assert (built.index_type, built.num_unindexed_rows) == ("IvfFlat", 0)
    assert (statistics.distance_type, written.metric) == (metric, metric)
    assert (table.count_rows(), written.vectors, written.without_vector) == (1100, 1098, 2)
    assert written.recall is not None
    assert written.recall >= 0.99
    query = clustered(1101)[1100]
    search = table.search(query, vector_column_name="embedding").distance_type(metric)
    assert "ANNSubIndex" in search.explain_plan()
    hits = search.nprobes(32).limit(3).select(["row", "_distance"]).to_list()  # all lists
    with open_vectors([path]) as opened:
        best = exact.best_rows(opened, query[None], 3, function=similarity)  # type: ignore[arg-type]
    assert [hit["row"] for hit in hits] == best.positions[0].tolist()


def test_lance_needs_no_index_for_few_vectors(tmp_path: Path) -> None:
    written = write_index(write_vectors(tmp_path / "v.arrow", clustered(100)), tmp_path / "v.lance", kind="lance")

    assert (written.index, written.setting, written.recall) == ("no index below 1,000", {}, None)
    assert lancedb.connect(tmp_path).open_table("v").list_indices() == []


def test_passages_have_positions_and_not_only_rows(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: the model says how its vectors are compared."""
    monkeypatch.undo()
    monkeypatch.setattr(index, "FEWEST_VECTORS", 100)
    monkeypatch.setattr(recall, "QUERIES", 20)
    articles = pq.read_table(ARTICLES, columns=["text"]).slice(0, 12)
    embed(articles, tmp_path / "v.arrow", encoder=encoder, long="chunks", chunk_tokens=48)
    table = pa.ipc.open_file(tmp_path / "v.arrow").read_all()
    assert table.num_rows > 110 > articles.num_rows

    for kind in KINDS:
        written = write_index(tmp_path / "v.arrow", tmp_path / f"v.{kind}", kind=kind)
        assert written.recall is not None
        assert written.recall >= 0.99

    query = np.array(table["embedding"][100].as_py(), dtype=np.float32)
    [[found]] = faiss.read_index(str(tmp_path / "v.faiss")).search(query[None], 1)[1]
    assert found == 100


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_replaced_only_if_asked(tmp_path: Path, kind: IndexKind) -> None:
    path, target = write_vectors(tmp_path / "v.arrow", clustered(50)), tmp_path / f"v.{kind}"
    write_index(path, target, kind=kind)
    other = write_vectors(tmp_path / "w.arrow", clustered(60))

    with pytest.raises(RefusedError, match=r"exists: replace it with --overwrite") as error:
        write_index(other, target, kind=kind)
    assert error.value.exit_code == 4
    assert write_index(other, target, kind=kind, overwrite=True).vectors == 60
    assert {path.name for path in tmp_path.iterdir()} == {"v.arrow", "w.arrow", target.name}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("old", [False, True], ids=["new", "overwrite"])
def test_an_interrupted_index_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: IndexKind, old: bool
) -> None:
    target = tmp_path / f"v.{kind}"
    if old:
        write_index(write_vectors(tmp_path / "w.arrow", clustered(50)), target, kind=kind)
    path = write_vectors(tmp_path / "v.arrow", clustered(1000))
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}

    def interrupted(_: PresentVectors) -> Neighbours:
        raise KeyboardInterrupt

    monkeypatch.setattr(Neighbours, "of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_index(path, target, kind=kind, overwrite=True)
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_vectors(tmp_path / "v.arrow", clustered(50))
    before = contents(tmp_path)

    def full(_: Any, writer: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(faiss, "write_index", full)
    with pytest.raises(FastvecError, match=r"^no space left for .*v\.faiss: make room") as error:
        write_index(path, tmp_path / "v.faiss", kind="faiss")
    assert error.value.exit_code == 5
    assert contents(tmp_path) == before


def test_vectors_are_added_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "BLOCK_BYTES", 300 * 4 * DIMS)
    path = write_vectors(tmp_path / "v.arrow", clustered(800), missing=(0, 300, 799))
    said: list[IndexProgress] = []

    write_index(path, tmp_path / "v.faiss", kind="faiss", progress=said.append)

    assert [progress.share for progress in said] == [(267, 800), (534, 800), (799, 800)]


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("faiss", "v.index", "v.index does not end in .faiss: give the index such a name"),
        ("lance", "v.faiss", "v.faiss does not end in .lance: give the index such a name"),
        ("annoy", "v.annoy", "there is no index 'annoy': choose faiss or lance"),
    ],
)
def test_names_of_other_kinds_are_refused(kind: Any, name: str, message: str) -> None:
    with pytest.raises(FastvecError, match=f"^{re.escape(message)}$"):
        write_index("missing.arrow", name, kind=kind)


@pytest.mark.parametrize(
    ("kind", "dtype", "missing", "similarity", "message"),
    [
        ("faiss", "binary", 0, "cosine", "v.arrow has binary vectors, which are not indexed: fastvec search is fast"),
        ("lance", "binary", 0, "cosine", "v.arrow has binary vectors, which are not indexed: fastvec search is fast"),
        ("lance", "int8", 0, "cosine", "v.arrow has int8 vectors, for which Lance has no index: use --index faiss"),
        ("faiss", "float32", 20, "cosine", "v.arrow has no vectors: there is nothing to index"),
        ("faiss", "float32", 0, "manhattan", "a model compares by Manhattan distance, which faiss does not index"),
    ],
)
def test_what_cannot_be_indexed_is_refused(
    tmp_path: Path, compare: Compare, kind: IndexKind, dtype: VectorDtype, missing: int, similarity: str, message: str
) -> None:
    compare(similarity)
    path = write_vectors(tmp_path / "v.arrow", clustered(20), dtype=dtype, missing=tuple(range(missing)))
    before = contents(tmp_path)
    with pytest.raises(FastvecError, match=re.escape(message)):
        write_index(path, tmp_path / f"v.{kind}", kind=kind)
    assert contents(tmp_path) == before


def test_lance_takes_one_file(tmp_path: Path) -> None:
    files = [write_vectors(tmp_path / name, clustered(20)) for name in ("a.arrow", "b.arrow")]
    with pytest.raises(
        FastvecError, match=r"^a Lance dataset is made of one file, not of 2: fastvec merge them first$"
    ):
        write_index(files, tmp_path / "v.lance", kind="lance")


@pytest.mark.parametrize(("kind", "module"), [("faiss", "faiss"), ("lance", "lancedb")])
def test_without_the_library_its_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: IndexKind, module: str
) -> None:
    path = write_vectors(tmp_path / "v.arrow", clustered(20))
    before = contents(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OutputError, match=rf"need the package {module}.*: pip install 'fastvec\[{kind}\]'$"):
        write_index(path, tmp_path / f"v.{kind}", kind=kind)
    assert contents(tmp_path) == before


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["search", *arguments])
    return result.exit_code, result.output


def test_the_command_writes_an_index_of_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.arrow", "b.arrow"):
        write_vectors(Path(name), clustered(20))

    code, printed = run("a.arrow", "b.arrow", "--index", "faiss", "-o", "v.faiss", "--json")

    report = json.loads(printed)
    assert (code, report["vectors"], report["index"], report["recall"]) == (0, 40, "Flat", None)
    assert faiss.read_index("v.faiss").ntotal == 40


def test_options_of_a_search_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("a.arrow", "--index", "faiss")[1].endswith("--index needs a name for the index: -o vecs.faiss\n")
    for option in (["-k", "3"], ["--filter", "row > 1"], ["--queries", "q.txt"], ["--device", "cpu"], ["--text"]):
        code, printed = run("a.arrow", "--index", "faiss", "-o", "v.faiss", *option)
        assert code == 2
        assert printed.endswith(f"{option[0]} is for a search: --index only writes an index\n")


def test_the_recipes_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    articles = pq.read_table(ARTICLES).slice(0, 80)
    embed(articles, "vecs.arrow", encoder=Encoder.from_pretrained(), column="text", keep=["title"])
    for kind in KINDS:
        write_index("vecs.arrow", f"vecs.{kind}", kind=kind)
    document = (ROOT / "docs/search-indexes.md").read_text()
    variables: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```", document, flags=re.MULTILINE | re.DOTALL):
        exec(compile(code, "search-indexes.md", "exec"), variables)

    vectors = np.array(variables["vecs"]["embedding"].to_pylist(), dtype=np.float32)
    order = np.argsort(-(vectors @ variables["query"])).tolist()
    assert variables["ids"][0].tolist() == order[:10]
    assert variables["titles"] == variables["vecs"]["title"].take(order[:10]).to_pylist()
    assert [hit["row"] for hit in variables["hits"]] == [row for row in order if row < 50][:10]
