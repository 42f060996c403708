"""Damaged and hostile model folders: each is refused in one line or gives vectors, in bounded memory, and runs nothing.

They are loaded under `python -O`, which leaves assertions out.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MODEL_MAPPING, AutoConfig

from fastvec.checkpoints.families import FAMILIES
from fastvec.checkpoints.model_files import read_json, weight_files
from fastvec.checkpoints.sizes import require_sizes
from fastvec.decoders import from_transformers
from tests.helpers.checkpoints import copy, edit_json, last_token_folder
from tests.helpers.hostile import CASES
from tests.helpers.processes import environment
from tests.helpers.tiny_families import tiny_model

Outcomes = dict[str, tuple[str, str]]
LONGEST_MESSAGE = 1000


@pytest.fixture(scope="module")
def whole_folder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file that fastvec reads, and modules of Python that make a file when imported."""
    folder = last_token_folder(copy(tiny_llama, tmp_path_factory.mktemp("hostile") / "model"))
    modules = json.loads((folder / "modules.json").read_text())
    for place, kind in ((2, "Dense"), (3, "Normalize")):
        path = f"{place}_{kind}"
        (folder / path).mkdir()
        modules.append({"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"})
    (folder / "modules.json").write_text(json.dumps(modules))
    edit_json(folder / "2_Dense" / "config.json", in_features=64, out_features=8, bias=True)
    torch.manual_seed(0)
    save_file(
        {"linear.weight": torch.randn(8, 64), "linear.bias": torch.randn(8)}, folder / "2_Dense/model.safetensors"
    )
    edit_json(folder / "sentence_bert_config.json", max_seq_length=77, do_lower_case=False)
    prompts = {"prompts": {"query": "q: "}, "default_prompt_name": "query", "truncate_dim": 8}
    edit_json(folder / "config_sentence_transformers.json", model_type="SentenceTransformer", **prompts)
    for name in ("modeling_evil", "evil"):
        (folder / f"{name}.py").write_text(f"open({str(folder.parent / 'canary')!r}, 'w')\nclass Evil: pass\n")
    return folder


@pytest.fixture(scope="module")
def outcomes(whole_folder: Path) -> Outcomes:
    python = [sys.executable, "-O", "-W", "ignore", "-m", "tests.helpers.hostile"]
    paths = environment() | {
        "PYTHONPATH": f"{environment()['PYTHONPATH']}:{whole_folder}"
    }  # the canaries can be imported
    done = subprocess.run(
        [*python, str(whole_folder)], env=paths, capture_output=True, text=True, cwd=whole_folder, timeout=600
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) > len(CASES)
    return {name: (kind, message) for name, kind, message in lines}


@pytest.mark.slow
def test_each_case_is_refused_by_name_or_ignored(outcomes: Outcomes) -> None:
    as_it_is = json.loads(outcomes["as it is"][1])
    for name, (_, message) in CASES.items():
        kind, found = outcomes[name]
        if message is None:
            assert kind == "vectors", f"{name}: {found}"
            np.testing.assert_allclose(json.loads(found), as_it_is, atol=1e-3, err_msg=name)
        else:
            assert kind == "ModelError", f"{name}: {kind} {found}"
            assert re.search(message, found), f"{name}: {found}"


@pytest.mark.slow
def test_any_value_of_any_key_gives_one_line_or_vectors(outcomes: Outcomes) -> None:
    for name, (kind, message) in outcomes.items():
        if kind == "vectors":
            assert np.isfinite(np.array(json.loads(message))).all(), name
        else:  # UsageError: what an option can mend, such as a default prompt that the folder does not have
            assert kind in ("ModelError", "UsageError"), f"{name}: {kind} {message}"
            assert "\n" not in message, name
            assert len(message) < LONGEST_MESSAGE, name


@pytest.mark.slow
def test_nothing_of_the_folders_ran(outcomes: Outcomes, whole_folder: Path) -> None:
    assert not (whole_folder.parent / "canary").exists()
    subprocess.run([sys.executable, "-c", "import modeling_evil"], cwd=whole_folder, check=True)  # the canary works
    (whole_folder.parent / "canary").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["10^9 layers", "a fifo for config.json", "a header of 100 MB"])
def test_the_command_refuses_it_in_one_line(whole_folder: Path, tmp_path: Path, name: str) -> None:
    change, message = CASES[name]
    folder = copy(whole_folder, tmp_path / "model")
    change(folder)
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"text": "a" * 64 + "!"}) + "\n")
    for command in ("embed", "adapt"):
        corpus = ["corpus.jsonl"] if command == "embed" else ["--data", "corpus.jsonl", "--objective", "mntp"]
        output = "vecs.arrow" if command == "embed" else "adapted"
        arguments = [command, *corpus, "-o", output, "--model", str(folder), "--device", "cpu"]
        done = subprocess.run(
            [sys.executable, "-O", "-m", "fastvec", *arguments],
            env=environment(),
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=120,
        )
        assert done.returncode == 1, done.stderr
        assert message is not None
        assert re.search(message, done.stderr)
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        assert not (tmp_path / output).exists()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_sizes_of_every_family_pass(model_type: str, tmp_path: Path) -> None:
    """What is refused as too large for its weights is never a model that transformers saved."""
    tiny_model(model_type).save_pretrained(tmp_path)
    weights = weight_files(tmp_path)
    require_sizes(read_json(tmp_path / "config.json"), tmp_path / "config.json", weights)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(from_transformers, "BUFFERS", 0)
        tensors = {name: tensor for file in weights for name, tensor in load_file(file).items()}
        config = AutoConfig.from_pretrained(tmp_path)
        from_transformers._require_parameters(MODEL_MAPPING[type(config)], config, tensors, tmp_path)
