import torch

from tests import THOROUGH


def examples(count: int) -> int:
    """Number of examples of a property: `count` on a GPU, fewer in the interpreter, where each one takes seconds.

    Every run draws new examples.
    """
    if torch.cuda.is_available():
        return count
    return count // 2 if THOROUGH else max(count // 8, 2)
