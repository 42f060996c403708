"""Token-budget batching: decides which texts of a chunk share a forward pass.

Sorting by length makes texts of equal length adjacent, and attention can process them as one dense block. Texts are not
padded, so a budget in tokens limits both work and memory. The batches depend only on the lengths and the budget: the
same chunk always yields the same batches.
"""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer]

# For a dtype of two bytes. On a CPU, 4,096 tokens suffice for efficient matrix products with any model, and more do not
# fit into its caches. A GPU needs more tokens to be fully used.
BATCH_TOKENS = {"cpu": 4096, "cuda": 32_768}
# The minimum work of a forward on a GPU, about 15 ms: with less, a small model's layers finish before the next ones are
# launched. And the maximum number of tokens used to reach it.
FORWARD_FLOP, MOST_TOKENS = 6e12, 131_072
LARGEST_MULTIPLE = 64
# A rough rate in FLOP/s, and how long a chunk should take at that rate: long enough for sorting by length to pay off,
# short enough that repeating a chunk costs little.
FLOPS = {"cpu": 2e11, "cuda": 2e14}
CHUNK_SECONDS, LONG_JOB_SECONDS = 4, 8
BYTES_A_TOKEN = 4  # of text, roughly
CHUNK_TOKENS = {"cpu": (4096, 65_536), "cuda": (262_144, 2_097_152)}


def token_budget(device: str, parameters: int, bytes_a_number: int) -> int:
    """Return the default number of tokens in a forward for a model with this many `parameters`."""
    tokens = BATCH_TOKENS[device]
    if device == "cuda":
        tokens = max(tokens, min(int(FORWARD_FLOP / (2 * parameters)), MOST_TOKENS))
    return 2 * tokens // bytes_a_number


def row_multiple(device: str, tokens: int) -> int:
    """Return the number of which a batch of `tokens` should be a multiple.

    With other numbers of rows, oneDNN's products take longer on a CPU (bfloat16 up to a fifth, float32 a tenth), and it
    compiles each new number. What fills a batch up is less than a sixteenth of it.
    """
    return min(LARGEST_MULTIPLE, 1 << max((tokens // 16).bit_length() - 1, 0)) if device == "cpu" else 1


def chunk_limits(device: str, parameters: int, max_length: int) -> dict[str, int]:
    """Return the limits of a chunk, in rows and in bytes of text, so that encoding it takes seconds on this device.

    A text of more than `row_bytes` is about as much work as one of `row_bytes`: it is truncated at `max_length` tokens.
    """
    tokens = int(CHUNK_SECONDS * FLOPS[device] / (2 * parameters))
    low, high = CHUNK_TOKENS[device]
    tokens = min(max(tokens, low), high)
    return {"rows": tokens // 8, "bytes": tokens * BYTES_A_TOKEN, "row_bytes": max_length * BYTES_A_TOKEN}


def is_long_job(device: str, parameters: int, text_bytes: int) -> bool:
    """Return whether encoding takes so long that it is worth it to measure first which implementations are fastest."""
    return 2 * parameters * text_bytes / BYTES_A_TOKEN > LONG_JOB_SECONDS * FLOPS[device]


def token_batches(lengths: IntArray, budget: int) -> list[IntArray]:
    """Split texts of `lengths` [n] tokens into batches of at most `budget` tokens; returns row indices, longest first.

    A text longer than the budget gets its own batch. The number of batches is the minimum that the sorted order allows,
    and tokens are spread evenly over them, because a small last batch would underuse the device for a whole forward.

    Raises ValueError for a budget below 1.
    """
    if budget < 1:
        raise ValueError(f"a batch needs a budget of at least 1 token, got {budget}")
    if len(lengths) == 0:
        return []
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    fewest = len(_cuts(ends, budget))
    # the smallest budget that needs no more batches spreads the tokens most evenly; binary search for it
    low, high = min(int(ends[-1]) // fewest, budget), budget
    while low < high:
        middle = (low + high) // 2
        if len(_cuts(ends, max(middle, 1))) <= fewest:
            high = middle
        else:
            low = middle + 1
    return np.split(order, _cuts(ends, max(high, 1))[:-1])


def _cuts(ends: IntArray, budget: int) -> list[int]:
    """Return the end index of each batch, filled greedily; `ends` [n] is the cumulative sum of the sorted lengths."""
    cuts: list[int] = []
    begin, taken = 0, 0
    while begin < len(ends):
        begin = max(int(np.searchsorted(ends, taken + budget, side="right")), begin + 1)
        taken = int(ends[begin - 1])
        cuts.append(begin)
    return cuts
