"""The articles, embedded into one file and into shards by the same tiny model."""

from pathlib import Path

import pytest

from fastvec import Encoder, embed
from fastvec.settings import EncoderSettings, resolve_settings
from tests import ARTICLES


@pytest.fixture(scope="session")
def settings(tiny_llama: Path) -> EncoderSettings:
    return resolve_settings(tiny_llama, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def model(settings: EncoderSettings) -> Encoder:
    return Encoder(settings)


@pytest.fixture(scope="session")
def articles_in_one(model: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / "vecs.arrow"
    embed([ARTICLES], path, encoder=model, column="text", keep=["title"])
    return path


@pytest.fixture(scope="session")
def articles_in_shards(model: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several") / "vecs"
    embed([ARTICLES], f"{folder}/", encoder=model, column="text", keep=["title"], shard_rows=60)
    return folder
