import json
from pathlib import Path

import pytest

from fastvec.training import metrics
from fastvec.training.metrics import Metrics, read_metrics


def rows(*steps: int) -> list[dict[str, float]]:
    return [{"step": step, "loss": 1 / step} for step in steps]


def test_a_run_that_resumes_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    first = Metrics(tmp_path, step=0)
    first.add(rows(1, 2, 3, 4))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 5, "lo')  # cut off by a crash
    second = Metrics(tmp_path, step=2)
    second.add([{"step": 2, "spearman": 0.5}, *rows(3)])
    assert read_metrics(path) == [*rows(1, 2), {"step": 2, "spearman": 0.5}, *rows(3)]
    assert second.values("loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert second.values("spearman") == [(2, 0.5)]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 2, 3]


def test_correlations_on_other_pairs_are_dropped_and_what_else_was_measured_stays(tmp_path: Path) -> None:
    measured = [
        {"step": 0, "spearman": 0.1, "pairs": "a"},
        {"step": 2, "held_out_loss": 2.0, "spearman": 0.5, "pairs": "a"},
    ]
    Metrics(tmp_path, step=0, pairs="a").add(measured)
    assert Metrics(tmp_path, step=2, pairs="a").rows == measured
    assert Metrics(tmp_path, step=2, pairs="b").rows == [{"step": 2, "held_out_loss": 2.0}]


def test_curves_are_drawn(tmp_path: Path) -> None:
    drawn = Metrics(tmp_path, step=0)
    drawn.add([{"step": 0, "held_out_loss": 2.0, "spearman": 0.1}, *rows(1, 2), {"step": 2, "held_out_loss": 1.0}])
    drawn.draw()
    drawn.close()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_line_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object) -> None:
        raise ImportError

    monkeypatch.setattr(metrics, "draw", missing)
    with caplog.at_level("INFO", logger="fastvec"):
        Metrics(tmp_path, step=0).draw()
    assert 'curves.png was not written: for curves and TensorBoard, pip install "fastvec[train]"' in caplog.text


def test_tensorboard_gets_what_the_file_gets(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    written = Metrics(tmp_path, step=0)
    written.add(rows(1, 2, 4))
    written.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 0.5), (4, 0.25)]
