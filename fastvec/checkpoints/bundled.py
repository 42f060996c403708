"""The model bundled with the package: small and English-only, for first tries and machines that run nothing larger."""

from importlib.resources import files
from pathlib import Path

NAME = "fastvec-mini"
BETTER = ("Qwen/Qwen3-Embedding-0.6B", "google/embeddinggemma-300m", "intfloat/e5-mistral-7b-instruct")
NOTE = f"used the bundled {NAME}, small and English-only. Larger models retrieve better: --model {', '.join(BETTER)}"


def bundled_model() -> Path:
    """Return the folder of the bundled model.

    This requires a package installed as plain files: a model cannot be loaded from inside an archive.
    """
    return Path(str(files("fastvec").joinpath("models", NAME)))
