from pathlib import Path

import pytest

from tests.demo import QUERIES, main


@pytest.mark.slow
def test_the_demo_embeds_checks_and_finds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(tmp_path)
    shown, told = capfd.readouterr()
    assert "all 11 checks passed" in shown
    assert "300 rows to" in told
    assert "used the bundled fastvec-mini" in told
    films, bacteria, skis = (shown.partition(f'"{query}" -k 3\n')[2].splitlines()[:3] for query in QUERIES)
    assert any("(1929 film)" in line for line in films)
    assert any("bacterium" in line or "bacillus" in line for line in bacteria)
    assert any("ski" in line.casefold() for line in skis)
    assert (tmp_path / "map.html").stat().st_size > 100_000
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
