import torch

from tests import THOROUGH


def examples(count: int) -> int:
    """Of a property: `count` on a GPU, fewer in the interpreter, where each takes seconds; every run draws new ones."""
    if torch.cuda.is_available():
        return count
    return count // 2 if THOROUGH else max(count // 8, 2)
