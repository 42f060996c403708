"""The progress of a search, and of writing an index."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How much is done, of how much."""

    done: int
    total: int

    @property
    def share(self) -> tuple[int, int]:
        return self.done, self.total


class SearchProgress(Progress):
    """The progress of a search: comparisons of a query with a row."""

    def __str__(self) -> str:
        return f"compared {self.done / max(self.total, 1):.0%} of {self.total:,} pairs of a query and a row"


class IndexProgress(Progress):
    """The progress of adding rows to an index."""

    def __str__(self) -> str:
        return f"indexed {self.done / max(self.total, 1):.0%} of {self.total:,} rows"
