"""Token-budget packing: which texts of a chunk share a forward pass.

Sorting by length puts texts of equal length side by side, which attention can serve as one dense block; nothing is
padded, so a budget in tokens is a budget in work and in memory. The batches depend on the lengths and the budget
alone: the same chunk always makes the same batches.
"""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer]

# Of two bytes a number. 4,096 tokens keep a CPU's matrix products busy for any model, and more leave its caches; a GPU
# needs more to fill it.
BATCH_TOKENS = {"cpu": 4096, "cuda": 32_768}
# What a GPU's forward has to do at least, some 15 ms of work: a small model's layers would be done sooner than the next
# ones are launched. And the most tokens that are taken for it.
FORWARD_FLOP, MOST_TOKENS = 6e12, 131_072
# a rough rate, in FLOP/s, and how long a chunk should take at it: enough to sort by length, little enough to redo
FLOPS = {"cpu": 1e11, "cuda": 2e14}
CHUNK_SECONDS = 4
CHUNK_TOKENS = {"cpu": (4096, 65_536), "cuda": (262_144, 2_097_152)}


def token_budget(device: str, parameters: int, bytes_a_number: int) -> int:
    """The tokens of a forward, where none are asked for, of a model of so many `parameters`."""
    tokens = BATCH_TOKENS[device]
    if device == "cuda":
        tokens = max(tokens, min(int(FORWARD_FLOP / (2 * parameters)), MOST_TOKENS))
    return 2 * tokens // bytes_a_number


def chunk_limits(device: str, parameters: int) -> dict[str, int]:
    """The rows and the bytes of text at which a chunk closes, so that encoding one takes seconds on this device."""
    tokens = int(CHUNK_SECONDS * FLOPS[device] / (2 * parameters))
    low, high = CHUNK_TOKENS[device]
    tokens = min(max(tokens, low), high)
    return {"rows": tokens // 8, "bytes": tokens * 4}


def token_batches(lengths: IntArray, budget: int) -> list[IntArray]:
    """Split texts of `lengths` [n] tokens into batches of at most `budget` tokens; returns row indices, longest first.

    A text longer than the budget is alone in its batch. There are as few batches as the sorted order allows, and they
    are evened out: a small last batch would leave the device idle for a whole forward.

    Raises ValueError for a budget below 1.
    """
    if budget < 1:
        raise ValueError(f"a batch needs a budget of at least 1 token, got {budget}")
    if len(lengths) == 0:
        return []
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    fewest = len(_cuts(ends, budget))
    # the smallest budget that needs no more batches spreads the tokens most evenly
    low, high = min(int(ends[-1]) // fewest, budget), budget
    while low < high:
        middle = (low + high) // 2
        if len(_cuts(ends, max(middle, 1))) <= fewest:
            high = middle
        else:
            low = middle + 1
    return np.split(order, _cuts(ends, max(high, 1))[:-1])


def _cuts(ends: IntArray, budget: int) -> list[int]:
    """Where each batch ends, filling greedily; `ends` [n] are the running sums of the sorted lengths."""
    cuts: list[int] = []
    begin, taken = 0, 0
    while begin < len(ends):
        begin = max(int(np.searchsorted(ends, taken + budget, side="right")), begin + 1)
        taken = int(ends[begin - 1])
        cuts.append(begin)
    return cuts
