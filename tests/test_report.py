import numpy as np

from fastvec.report import Progress, Report, padded_tokens


def test_a_report_says_what_was_done_and_leaves_out_what_did_not_happen() -> None:
    report = Report(
        output="vecs.arrow",
        model="m",
        device="cpu",
        rows=25_054,
        nulls=3,
        resumed_rows=1_000,
        seconds=12.34,
        rows_per_second=1949.4,
        tokens_per_second=250_000.0,
        bottleneck="encode",
        verified=True,
    )
    assert str(report) == (
        "25,054 rows to vecs.arrow in 12.3 s; 1,000 of them from an earlier run; 1,949 rows/s, 250,000 tokens/s; "
        "3 nulls; verified; bottleneck: encode"
    )
    assert report.return_code == 0


def test_row_errors_show_in_the_return_code() -> None:
    assert Report(output="o", model="m", device="cpu", rows=1, errors=1).return_code == 3


def test_padding_is_counted_in_input_order() -> None:
    assert padded_tokens(np.array([1] * 31 + [10] + [2, 4])) == 32 * 10 + 2 * 4
    assert padded_tokens(np.array([], dtype=np.int64)) == 0


def test_a_progress_line() -> None:
    progress = Progress(
        rows=3_000, total_rows=10_000, new_rows=2_000, tokens=500_000, seconds=4.0, waits={"write": 3.6, "encode": 0.2}
    )
    assert str(progress) == (
        "3,000 of 10,000 rows, 500 rows/s, 125,000 tokens/s, 0:00:14 left (waits: encode 0s write 4s)"
    )


def test_a_progress_line_counts_errors() -> None:
    progress = Progress(rows=3, total_rows=9, new_rows=3, tokens=8, seconds=1, waits={}, errors=2)
    assert str(progress) == "3 of 9 rows, 2 errors, 3 rows/s, 8 tokens/s, 0:00:02 left"


def test_a_progress_line_before_the_first_row_promises_no_end() -> None:
    progress = Progress(rows=0, total_rows=10, new_rows=0, tokens=0, seconds=0.0, waits={})
    assert str(progress) == "0 of 10 rows, 0 rows/s, 0 tokens/s"
