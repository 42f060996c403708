"""Human-scored text pairs, and Spearman's rank correlation. Does not import torch.

Shapes: n pairs.
"""

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastvec.errors import InputError

COLUMNS = ("sentence1", "sentence2", "score")


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Pairs of texts with human similarity scores, on any scale."""

    first: list[str]
    second: list[str]
    scores: npt.NDArray[np.float64]  # [n]

    @property
    def digest(self) -> str:
        """A hash of the texts and scores."""
        content = json.dumps([self.first, self.second, self.scores.tolist()])
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def read_scored_pairs(path: Path) -> ScoredPairs:
    """Read the columns sentence1, sentence2 and score of a .csv file, or of a tab-separated one (any other suffix).

    Without a header, the columns must be in this order. In a tab-separated file, quotation marks are ordinary
    characters. Raises InputError if the file cannot be read, is empty or lacks a column, if a pair lacks a text or its
    score is not a finite number, if there are fewer than two pairs, or if all scores are equal.
    """
    commas = path.suffix.lower() == ".csv"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            read = csv.reader(file) if commas else csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            rows = [(read.line_num, row) for row in read if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not rows:
        raise InputError(f"{path}: the file is empty")
    (_, header), places = rows[0], [0, 1, 2]
    if all(name in header for name in COLUMNS):
        rows, places = rows[1:], [header.index(name) for name in COLUMNS]
    elif len(header) < 3 or not _is_number(header[2]):
        expected = f"expected the columns {', '.join(COLUMNS)}, named in a header or in this order"
        raise InputError(f"{path}: {expected}; its first row is {', '.join(header)[:100]!r}")
    for line, row in rows:
        if len(row) <= max(places) or not all(row[place] for place in places[:2]):
            raise InputError(f"{path}: line {line} does not have two texts and a score: correct it")
        if not _is_number(row[places[2]]):
            raise InputError(f"{path}: line {line} has the score {row[places[2]]!r}: expected a finite number")
    first, second, scores = ([row[place] for _, row in rows] for place in places)
    values = np.array([float(score) for score in scores])
    if len(values) < 2 or np.ptp(values) == 0:
        raise InputError(f"{path}: a correlation needs at least two pairs with different scores, found {len(values)}")
    return ScoredPairs(first=first, second=second, scores=values)


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def spearman(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> float:
    """Return Pearson's correlation of the ranks; tied values share their mean rank. NaN if `x` or `y` is constant."""
    ranks = [_ranks(values) for values in (x, y)]
    if any(np.ptp(own) == 0 for own in ranks):
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: npt.NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return means
