"""Turn a decoder language model into a text encoder and stream whole corpora through it."""

from fastvec.errors import FastvecError

__version__ = "0.1.0"
__all__ = ["FastvecError", "__version__"]
