import pytest

from fastvec.fingerprint import Json, fingerprint_differences


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, 2]}, []),
        ({"a": 1}, {"b": 2}, ["a was 1, now null", "b was null, now 2"]),
        ({"a": 1}, {"a": 1.0}, ["a was 1, now 1.0"]),
        ({"a": [1, [2, 3]]}, {"a": [1, [2, 4]]}, ["a[1][1] was 3, now 4"]),
        ({"columns": ["title"]}, {"columns": ["title", "text"]}, ['columns was ["title"], now ["title", "text"]']),
        ({"a": "x" * 100}, {"a": ""}, [f'a was "{"x" * 78}…, now ""']),
        (
            {"inputs": [[f"part-{i}.parquet", 7_000_000] for i in range(9)]},
            {"inputs": [[f"part-{i}.parquet", 7_000_000] for i in range(10)]},
            ['inputs was 9 values, now 10: inputs[9] was absent, now ["part-9.parquet", 7000000]'],
        ),
        (
            {"inputs": [[f"part-{i}.parquet", 7_000_000] for i in range(9)]},
            {"inputs": [[f"part-{i}.parquet", 7_000_000] for i in range(1, 9)]},
            ['inputs was 9 values, now 8: inputs[0] was ["part-0.parquet", 7000000], now ["part-1.parquet", 7000000]'],
        ),
    ],
)
def test_what_differs_is_named(old: dict[str, Json], new: dict[str, Json], expected: list[str]) -> None:
    assert fingerprint_differences(old, new) == expected
