"""Set up all tests: no network, NaN in uninitialized memory, and one shared tiny model with its encoder."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # no network in tests; must be set before huggingface_hub is imported

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined; only the kernel tests run kernels

from fastvec import Encoder
from fastvec.texts.tokenized import TokenizedTexts
from tests.helpers.tiny import save_decoder

# the speed of examples depends only on the machine
settings.register_profile("fastvec", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fastvec")


@pytest.fixture(autouse=True)
def poison_uninitialised_memory() -> Iterator[None]:
    """Fill `torch.empty` with NaN, so that an op that skips an element is caught."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def log_settings_of_a_command_end_with_it() -> Iterator[None]:
    """Undo what a command that runs in this process sets, such as `--quiet`, which would hide other tests' warnings."""
    yield
    log = logging.getLogger("fastvec")
    log.setLevel(logging.NOTSET)
    log.handlers.clear()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama decoder (64 dimensions, 2 layers) and a byte-level BPE tokenizer with a BOS."""
    return save_decoder(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture
def llama(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama that the test may change."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "llama"))


@pytest.fixture(scope="module")
def encoder(tiny_llama: Path) -> Encoder:
    return Encoder.from_pretrained(tiny_llama, dtype="float32", device="cpu")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit chunks to 40 rows, so that 300 rows make several chunks."""
    monkeypatch.setattr(Encoder, "chunk_limits", {"rows": 40, "bytes": 16_000})


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each chunk gave to the encoder."""
    counts: list[int] = []
    begin = Encoder.begin

    def counted(self: Encoder, texts: TokenizedTexts, *arguments: Any) -> Any:
        counts.append(len(texts))
        return begin(self, texts, *arguments)

    monkeypatch.setattr(Encoder, "begin", counted)
    return counts
