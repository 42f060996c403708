"""What is measured of a job: in bounded memory, and adding up to what the job reports."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from fastvec import Encoder
from fastvec.embedding.job import embed_file
from fastvec.embedding.measurements import NORM_EDGES, POINTS, Measurements
from fastvec.embedding.options import EmbedOptions
from fastvec.embedding.plan import plan_embed
from fastvec.report import Progress, Report
from tests import ARTICLES
from tests.helpers.outputs import read_output


def measured(encoder: Encoder, output: Path, options: EmbedOptions) -> tuple[Report, Measurements]:
    measurements = Measurements()
    report = embed_file(
        plan_embed([ARTICLES], output, settings=encoder.settings, options=options),
        encoder,
        batch_tokens=None,
        overwrite=False,
        progress=measurements.watching(lambda _: None),
        stop_signal=lambda: None,
        measurements=measurements,
    )
    return report, measurements


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("long", ["truncate", "mean", "chunks"])
def test_a_job_is_measured_whole(encoder: Encoder, output: Path, long: str) -> None:
    report, found = measured(encoder, output, EmbedOptions(column="text", limit=100, long=long))
    tokens = np.arange(len(found.sequences))
    assert int(found.sequences @ tokens) == report.tokens
    assert found.sequences[-1] > 0
    if long == "truncate":
        assert found.sequences.sum() == 100 - report.duplicates
    assert found.vectors == report.rows
    assert found.points[-1][1:] == (100, report.tokens)
    assert found.busy.keys() == {"read", "tokenize", "encode", "write"}
    assert all(seconds > 0 for seconds in found.busy.values())


def test_norms_are_those_of_the_vectors(tiny_llama: Path, output: Path) -> None:
    encoder = Encoder.from_pretrained(tiny_llama, dtype="float32", device="cpu", normalize=False)
    _, found = measured(encoder, output, EmbedOptions(column="text", limit=50))
    column = read_output(output)["embedding"].combine_chunks()
    norms = np.linalg.norm(column.values.to_numpy().reshape(50, -1).astype(np.float64), axis=1)
    # of the same vectors, in float64
    assert np.allclose(found.norm_range, [norms.min(), norms.max()], rtol=1e-12, atol=0)
    assert found.norm_sum == pytest.approx(norms.sum(), rel=1e-12)
    expected, _ = np.histogram(norms, NORM_EDGES)
    assert found.norms[1:-1].tolist() == expected.tolist()


def test_vectors_of_any_norm_are_counted() -> None:
    found = Measurements()
    found.add_chunk(np.array([3, 3, 1]), np.array([[0, 0], [3e25, 4e25], [0.6, 0.8]], dtype=np.float32))
    found.add_chunk(np.array([], dtype=np.int64), np.zeros((0, 2), dtype=np.float32))
    assert (found.sequences.tolist(), found.vectors) == ([0, 1, 0, 2], 3)
    assert (found.norms[0], found.norms[-1]) == (1, 1)
    assert np.allclose(found.norm_range, [0, 5e25])


def test_points_are_bounded_and_evenly_spaced() -> None:
    found, calls, state = (
        Measurements(),
        1_000_000,
        cast(Progress, SimpleNamespace()),
    )  # one object: making them takes 5 s
    for call in range(1, calls + 1):
        state.__dict__.update(new_rows=call, tokens=7 * call, seconds=call / 100)
        found.add_progress(state)
    points = found.points
    assert POINTS / 4 < len(points) <= POINTS + 1
    assert (points[0], points[-1]) == ((0.0, 0, 0), (calls / 100, calls, 7 * calls))
    seconds = np.array([point.seconds for point in points])
    assert np.allclose([point.rows for point in points], seconds * 100)
    # an interval doubles at each thinning; the last one may be cut
    between = np.diff(seconds)[:-1]
    assert between.max() <= 2.01 * between.min()
