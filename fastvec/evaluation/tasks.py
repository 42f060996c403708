"""What a task is: it has data, and judges a contestant."""

from collections.abc import Mapping
from typing import ClassVar, Protocol

from fastvec.evaluation.bootstrap import Measured
from fastvec.evaluation.contestants import Contestant


class Task(Protocol):
    """A task and its data. `notes` are what a reader of the scores should know, such as what was left out."""

    kind: ClassVar[str]
    measures: ClassVar[tuple[str, ...]]

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> str:
        """How many of what it has, such as `1,500 pairs`."""

    @property
    def notes(self) -> tuple[str, ...]: ...
    def judge(self, contestant: Contestant) -> Mapping[str, Measured]:
        """Return each of `measures`; the scores are from 0 (or -1) to 1."""
