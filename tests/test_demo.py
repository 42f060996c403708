import re
from pathlib import Path

import pytest

from tests.demo import main


def test_the_demo_embeds_checks_and_shows(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(tmp_path)
    shown, told = capfd.readouterr()
    assert shown.startswith("No model is bundled yet: making a small decoder with random weights.")
    assert "all 11 checks passed" in shown
    assert "300 rows to" in told
    assert len(re.findall(r"^nearest to .+: .+, .+", shown, re.MULTILINE)) == 3
