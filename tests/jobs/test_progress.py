from dataclasses import replace

from fastvec.jobs.progress import JobProgress
from fastvec.report import Progress
from fastvec.shards.receipts import Receipt


def progress(rows: int, new_rows: int, **waits: float) -> Progress:
    return Progress(rows=rows, total_rows=100, new_rows=new_rows, tokens=3 * new_rows, seconds=1.0, waits=waits)


def receipt(shard: int, rows: int) -> Receipt:
    return Receipt(
        shard=shard,
        first_row=0,
        input_rows=rows,
        rows=rows,
        bytes=1,
        checksum="00000000",
        counts={"tokens": 3 * rows},
        errors=[],
    )


def sums(job: JobProgress) -> tuple[int, int, int, dict[str, float]]:
    state = job.state
    return state.rows, state.new_rows, state.tokens, state.waits


def test_the_progress_of_shards_is_added_up() -> None:
    shown: list[Progress] = []
    job = JobProgress(1000, 50, shown.append)
    job.update(3, progress(30, 20, read=0.5))  # it was resumed at row 10
    job.update(4, progress(40, 40, read=0.25, encode=1.0))
    assert sums(job) == (120, 60, 180, {"read": 0.75, "encode": 1.0})
    job.update(3, progress(60, 50, read=2.0))
    assert sums(job) == (150, 90, 270, {"read": 2.25, "encode": 1.0})
    assert [state.rows for state in shown] == [80, 120, 150]
    assert shown[-1].total_rows == 1000


def test_errors_of_finished_and_of_running_shards_are_added_up() -> None:
    job = JobProgress(1000, 0, lambda _: None)
    job.update(1, replace(progress(30, 30), errors=2))
    job.update(1, replace(progress(60, 60), errors=5))
    job.finish(replace(receipt(2, 100), counts={"tokens": 300, "errors": 7}))
    assert job.state.errors == 12


def test_a_finished_shard_counts_all_its_rows_once() -> None:
    job = JobProgress(1000, 0, lambda _: None)
    job.update(3, progress(90, 80, read=0.5))
    job.finish(receipt(3, 100))
    assert sums(job) == (100, 80, 240, {"read": 0.5})  # the work of this run
    job.restart(3)
    assert sums(job)[0] == 100


def test_a_shard_without_progress_counts_by_its_receipt() -> None:
    job = JobProgress(1000, 0, lambda _: None)
    job.finish(receipt(3, 100))
    assert sums(job) == (100, 100, 300, {})


def test_a_shard_that_is_done_again_counts_anew() -> None:
    job = JobProgress(1000, 0, lambda _: None)
    job.update(3, progress(90, 80, read=0.5))
    job.restart(3)
    assert sums(job) == (0, 0, 0, {"read": 0.0})
    job.restart(3)  # its process died before it began
    job.update(3, progress(20, 20))
    assert sums(job)[0] == 20
