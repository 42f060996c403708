import pytest

from fastvec.embedding.estimate import Estimate


@pytest.mark.parametrize(("device", "where"), [("cpu", "cpu"), ("cuda", "one GPU")])
def test_an_estimate_says_on_what_the_job_would_take_so_long(device: str, where: str) -> None:
    """The time of a job with several GPUs or machines is divided by their number, which is not known here."""
    estimate = Estimate(
        rows=1_000,
        tokens=50_000,
        sampled_rows=100,
        output_bytes=1_500_000,
        seconds=12.3,
        tokens_per_second=4_000.0,
        output="vecs.arrow",
        model="m",
        device=device,
    )
    assert str(estimate) == (
        "1,000 rows, about 50,000 tokens (from 100 sampled rows), 1.5 MB to vecs.arrow, "
        f"about 12 s on {where} at 4,000 tokens/s; nothing was written"
    )
