from pathlib import Path

from fastvec.output.reader import read_output
from tests.helpers.outputs import ROWS, make_chunk, run_job


def test_a_null_row_does_not_shift_the_others(output: Path) -> None:
    """Vectors are read in slices, as the checks do; each row must have the vector that was written."""
    run_job(output)
    opened = read_output(output)
    for index, batch in enumerate(opened.batches()):
        expected = make_chunk(index)[0].column("embedding").to_pylist()
        for begin in range(ROWS):
            vectors, valid = opened.vectors(batch.slice(begin, 2), "embedding")
            found = [list(vector) if known else None for vector, known in zip(vectors.tolist(), valid, strict=True)]
            assert found == expected[begin : begin + 2]
