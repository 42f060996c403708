import torch


def examples(count: int) -> int:
    """Of a property: in the interpreter, where each takes seconds, half as many; every run draws new ones."""
    return count if torch.cuda.is_available() else count // 2
