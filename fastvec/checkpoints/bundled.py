"""The model that comes with the package: small and English, for a first try and for where nothing larger runs."""

from importlib.resources import files
from pathlib import Path

NAME = "fastvec-mini"
BETTER = ("Qwen/Qwen3-Embedding-0.6B", "google/embeddinggemma-300m", "intfloat/e5-mistral-7b-instruct")
NOTE = f"{NAME}, the bundled model, was used: small, English only. Larger ones find more: --model {', '.join(BETTER)}"


def bundled_model() -> Path:
    """Its folder. The package is installed as files: a model is not loaded from inside an archive."""
    return Path(str(files("fastvec").joinpath("models", NAME)))
