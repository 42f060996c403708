"""The result of `fastvec doctor`: one line for each check, fit for a bug report."""

import getpass
import platform
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fastvec import __version__

# note: fastvec works, but slower or with less protection than it could
Result = Literal["ok", "note", "FAILED"]
Outcome: TypeAlias = tuple[Result, str]

COLUMNS, WIDTH = (8, 12), 120


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One check. `detail` says what was found and, unless all is well, what is expected and what to do."""

    name: str
    result: Result
    detail: str

    def __str__(self) -> str:
        head = f"{self.result:<{COLUMNS[0]}}{self.name:<{COLUMNS[1]}}"
        return textwrap.fill(
            self.detail,
            WIDTH,
            initial_indent=head,
            subsequent_indent=" " * len(head),
            break_long_words=False,
            break_on_hyphens=False,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    checks: tuple[Check, ...]

    @property
    def return_code(self) -> int:
        return 1 if self._count("FAILED") else 0

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.return_code == 0, "version": __version__, **asdict(self)}

    def __str__(self) -> str:
        failed, notes = self._count("FAILED"), self._count("note")
        verdict = f"{failed} of {len(self.checks)} checks failed" if failed else f"all {len(self.checks)} checks passed"
        remarks = f", {notes} with a note" if notes else ""
        return "\n".join([*map(str, self.checks), f"fastvec {__version__}: {verdict}{remarks}"])

    def _count(self, result: Result) -> int:
        return sum(check.result == result for check in self.checks)


def outcome(found: str, *, notes: Sequence[str] = (), failures: Sequence[str] = ()) -> Outcome:
    """Return what was found, with what is wrong before it."""
    result: Result = "FAILED" if failures else "note" if notes else "ok"
    return result, "; ".join([*failures, *notes, *filter(None, [found])])


def anonymous(check: Check) -> Check:
    """Return `check` with the home folder as ~, and without parts of paths that are the user's or the host's name."""
    detail = check.detail
    home = str(Path.home())
    if home != "/":
        detail = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", detail)
    for name, shown in ((_user(), "USER"), (platform.node(), "HOST")):
        if name:
            detail = re.sub(rf"(?<=/){re.escape(name)}(?![\w.-])", shown, detail)
    return replace(check, detail=detail)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return ""
