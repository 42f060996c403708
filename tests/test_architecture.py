"""The import graph has floors; a module may import only from floors below its own."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS: list[set[str]] = []


def floor_of(module: str) -> int | None:
    for floor, names in enumerate(FLOORS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return floor
    return None
