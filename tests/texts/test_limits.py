import base64
import json
from pathlib import Path

import pytest

from fastvec.checkpoints.model_files import LARGEST_JSON
from fastvec.errors import ModelError
from fastvec.texts.limits import require_charsmaps


def test_a_tokenizer_larger_than_other_json_is_searched_for_maps_of_characters(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    content = {"normalizer": {"precompiled_charsmap": base64.b64encode(b"\xff" * 5).decode()}}
    path.write_text(json.dumps(content) + " " * LARGEST_JSON)

    with pytest.raises(ModelError, match="damaged precompiled_charsmap"):
        require_charsmaps(path)


def test_a_tokenizer_without_maps_of_characters_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": {"vocab": {"Precompiled": 0, "precompiled_charsmap')

    require_charsmaps(path)
