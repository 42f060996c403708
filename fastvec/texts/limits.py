"""Keeps a tokenizer.json from taking all memory or ending the process: the tokenizers library sets no limits.

Its errors in the middle of a text are panics of Rust, which are no `Exception`; when it runs out of memory, the process
aborts.
"""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastvec.checkpoints.model_files import LARGEST_TOKENIZER_FILE, read_json
from fastvec.errors import ModelError
from fastvec.system.memory import is_out_of_memory

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LARGEST_GROWTH = 100  # times that a normalizer may lengthen a text; those of published tokenizers: 1


@contextmanager
def translated_panics() -> Iterator[None]:
    """Raise a panic of the tokenizers library in this block, unless memory ran out, as ModelError without its words."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException" or is_out_of_memory(error):
            raise
        raise ModelError(
            "the model's tokenizer failed on a text: its files are damaged, or its pattern takes too many steps; "
            "download the model again"
        ) from None


def require_charsmaps(path: Path) -> None:
    """Raise ModelError if a precompiled map of characters in the tokenizer.json at `path` states a size it has not."""
    if b'"precompiled_charsmap"' in path.read_bytes():
        for part in _parts(read_json(path, most=LARGEST_TOKENIZER_FILE)):
            blob = _decoded(part.get("precompiled_charsmap"))
            if blob is not None and not 4 <= 4 + int.from_bytes(blob[:4], "little") <= len(blob):
                raise ModelError(f"{path} has a damaged precompiled_charsmap: download the model again")


def bound(backend: "Tokenizer", path: Path) -> None:
    """Turn padding and truncation of `backend` off, which fastvec does itself; call it before a text is encoded.

    Raises ModelError if its normalizer makes texts more than LARGEST_GROWTH times as long.
    """
    backend.no_padding()
    backend.no_truncation()
    growth = 1.0
    if backend.normalizer is not None:
        for part in _parts(json.loads(backend.normalizer.__getstate__())):
            growth *= max(1.0, _growth(part))
    if growth > LARGEST_GROWTH:
        raise ModelError(f"{path} has a normalizer that makes texts {growth:.2g} times as long: it is damaged")


def _growth(part: dict[str, Any]) -> float:
    if part.get("type") == "Prepend":
        return len(str(part.get("prepend")))
    if part.get("type") != "Replace":
        return 1
    pattern = part.get("pattern") or {}
    return len(str(part.get("content"))) / max(len(pattern.get("String", "")), 1)


def _decoded(charsmap: Any) -> bytes | None:
    if not charsmap:
        return None
    try:
        return base64.b64decode(str(charsmap), validate=True)
    except ValueError:
        return b""


def _parts(content: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in parsed JSON."""
    if isinstance(content, dict):
        yield content
        if "vocab" in content:  # large, and without objects that matter here
            return
    for value in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from _parts(value)
