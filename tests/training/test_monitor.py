import signal
from pathlib import Path
from typing import Any

import pytest

from fastvec.errors import InterruptedRunError
from fastvec.training.metrics import read_metrics
from fastvec.training.trainer import PackedTrainer
from tests.helpers.tiny import SENTENCES
from tests.training.test_job import adapt


@pytest.mark.slow
def test_correlations_before_and_after_are_of_the_same_pairs(tiny_llama: Path, tmp_path: Path) -> None:
    """A run that resumes with other pairs drops the earlier correlations and keeps the other metrics."""
    lines = [f"{one}\t{SENTENCES[0]}\t{score}" for score, one in enumerate(SENTENCES)]
    for name, count in (("few", 4), ("all", 5)):
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines[:count]))
    asked = iter([None])
    with pytest.raises(InterruptedRunError):
        adapt(
            tmp_path / "out",
            tiny_llama,
            steps=3,
            eval_pairs=tmp_path / "few.tsv",
            stop_signal=lambda: next(asked, signal.SIGINT),
        )
    before = read_metrics(tmp_path / "out.part" / "metrics.jsonl")
    assert [row["step"] for row in before if "spearman" in row] == [0, 1, 2]
    report = adapt(tmp_path / "out", tiny_llama, steps=3, eval_pairs=tmp_path / "all.tsv")
    assert (report.resumed_steps, report.held_out_before) == (2, before[0]["held_out_loss"])
    assert (report.spearman_before, report.spearman_after is None) == (None, False)
    rows = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [row["step"] for row in rows if "spearman" in row] == [3]


def test_where_nothing_is_measured_there_is_no_line(tiny_llama: Path, tmp_path: Path) -> None:
    report = adapt(tmp_path / "out", tiny_llama, steps=1, hold_out=0.0)
    (row,) = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert row.keys() == {"step", "loss", "learning_rate", "gradient_norm", "tokens"}
    assert (report.held_out_before, report.held_out_after) == (None, None)


@pytest.mark.slow
def test_a_run_that_resumes_may_save_at_other_steps(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InterruptedRunError):
        adapt(tmp_path / "out", tiny_llama, save_every=100, stop_signal=lambda: 15)
    saved = []
    write = PackedTrainer.save_model

    def noted(self: PackedTrainer, *given: Any, **options: Any) -> None:
        saved.append(self.state.global_step)
        write(self, *given, **options)

    monkeypatch.setattr(PackedTrainer, "save_model", noted)
    adapt(tmp_path / "out", tiny_llama, save_every=2)
    assert saved == [2, 4, 6]
