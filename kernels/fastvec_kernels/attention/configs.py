"""Tiles of each attention pass: tables by architecture and head size instead of autotuning at run time.

A cell lists candidates, best first. `configuration` takes the first that fits the kind of attention; benchmarks compare
it with the rest. All candidates compile without spilling registers; which is fastest must be measured on a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch

from fastvec_kernels._launch import next_power_of_2
from fastvec_kernels.attention.parts import Kind, Tile

Cells = dict[int, tuple[Tile, ...]]  # keyed by the widest head that a cell serves


@dataclass(frozen=True, kw_only=True, slots=True)
class Passes:
    """The tiles of every pass. The short ones are keyed by the longest sequence that fits into them, ascending."""

    forward_long: tuple[Tile, ...]  # in order of preference: the tensors' addresses may rule some out
    forward_short: dict[int, Tile]
    rotary: dict[int, Tile]  # of `rope_attention`
    backward_rows: Tile
    backward_keys: Tile
    backward_short: dict[int, Tile]


CLASSES = (32, 64, 128)
SPECIALIZED_EXCLUDES = "window softcap sinks dropout"  # what the specialized kernel does not compute
# Specialized tiles have descriptors and a warp that only loads, which pays from 1,000 to 2,000 tokens a sequence. They
# have never run on a GPU, so they come last: only a benchmark or a test takes them.
TABLES: dict[str, dict[str, Cells]] = {
    "sm_80": {
        "forward_long": {
            64: (Tile(128, 64, 8, 3),),
            128: (Tile(128, 32, 8, 2, excludes="dropout"), Tile(64, 64, 8, 2)),
            256: (Tile(64, 32, 8, 2, excludes="dropout"), Tile(32, 32, 8, 2)),
        },
        "forward_32": {64: (Tile(32, 32, 2, 2),), 128: (Tile(32, 32, 2, 2),), 256: (Tile(32, 32, 4, 2),)},
        "forward_64": {64: (Tile(64, 64, 4, 2),), 128: (Tile(64, 64, 4, 2),), 256: (Tile(32, 64, 4, 2),)},
        "forward_128": {64: (Tile(64, 128, 4, 2),), 128: (Tile(64, 128, 4, 2),)},
        "rotary_32": {64: (Tile(32, 32, 4, 1),), 128: (Tile(32, 32, 4, 1),)},
        "rotary_64": {64: (Tile(64, 64, 4, 1),), 128: (Tile(32, 64, 8, 1),)},
        "rotary_128": {64: (Tile(64, 128, 8, 1),), 128: (Tile(32, 128, 8, 1),)},
        "backward_rows": {
            64: (Tile(128, 32, 8, 3),),
            128: (Tile(64, 64, 8, 2),),
            256: (Tile(64, 32, 8, 1, excludes="dropout"), Tile(32, 32, 8, 2)),
        },
        "backward_keys": {
            64: (Tile(64, 128, 8, 2, excludes="dropout"), Tile(32, 128, 8, 2)),
            128: (Tile(64, 64, 8, 2),),
            256: (Tile(32, 32, 8, 2),),
        },
        "backward_32": {64: (Tile(32, 32, 2, 2),), 128: (Tile(32, 32, 4, 2),), 256: (Tile(32, 32, 8, 2),)},
        "backward_64": {64: (Tile(32, 64, 4, 2),), 128: (Tile(32, 64, 8, 2),)},
        "backward_128": {32: (), 64: (Tile(32, 128, 8, 2),)},
    },
    "sm_90": {
        "forward_long": {
            64: (
                Tile(128, 128, 8, 3, excludes="dropout"),
                Tile(128, 64, 8, 3),
                Tile(128, 128, 4, 3, path="specialized"),
            ),
            128: (
                Tile(128, 64, 8, 3),
                Tile(128, 128, 8, 2, excludes="causal window softcap dropout"),
                Tile(128, 128, 4, 2, path="specialized"),
                Tile(128, 64, 4, 3, path="specialized"),
            ),
            # Triton 3.6 spills the first for causal attention and the second for Gemma 2's causal windows, 3.9 neither;
            # in the third, two warpgroups compute the same scores: 64 rows take 33 HGMMA, 128 rows of the second 17
            256: (
                Tile(128, 32, 8, 3, excludes="causal window+softcap dropout"),
                Tile(128, 16, 8, 3, excludes="causal+window+softcap"),
                Tile(64, 16, 8, 2),
            ),
        },
        "forward_32": {
            64: (Tile(32, 32, 2, 2), Tile(64, 32, 4, 2)),
            128: (Tile(32, 32, 2, 2), Tile(64, 32, 4, 2)),
            256: (Tile(32, 32, 4, 2), Tile(64, 32, 4, 2)),
        },
        "forward_64": {
            64: (Tile(64, 64, 4, 2), Tile(128, 64, 8, 2)),
            128: (Tile(64, 64, 4, 2), Tile(128, 64, 8, 2)),
            256: (Tile(64, 64, 8, 1), Tile(128, 64, 8, 1)),
        },
        # at 128, two programs of the first fit on a multiprocessor, one of the others; with two stages, 3.9 spills it
        "forward_128": {
            64: (Tile(64, 128, 4, 2), Tile(128, 128, 8, 2)),
            128: (Tile(64, 128, 4, 1), Tile(64, 128, 8, 2), Tile(128, 128, 8, 2, excludes="sinks softcap+dropout")),
        },
        "rotary_32": {64: (Tile(64, 32, 4, 1), Tile(32, 32, 4, 1)), 128: (Tile(64, 32, 4, 1),)},
        "rotary_64": {64: (Tile(64, 64, 4, 1), Tile(128, 64, 8, 1)), 128: (Tile(64, 64, 4, 1), Tile(128, 64, 8, 1))},
        "rotary_128": {64: (Tile(64, 128, 4, 1), Tile(64, 128, 8, 1)), 128: (Tile(64, 128, 4, 1), Tile(64, 128, 8, 1))},
        "backward_rows": {
            64: (Tile(128, 64, 8, 3),),
            128: (Tile(128, 64, 8, 3, excludes="dropout causal+window"), Tile(128, 32, 8, 2)),
            256: (Tile(32, 32, 8, 2),),
        },
        "backward_keys": {
            64: (Tile(64, 128, 8, 2),),
            128: (Tile(32, 128, 8, 2, excludes="dropout"), Tile(32, 64, 8, 2)),
            256: (Tile(32, 32, 8, 2),),
        },
        "backward_32": {64: (Tile(32, 32, 2, 2),), 128: (Tile(32, 32, 4, 2),), 256: (Tile(32, 32, 8, 2),)},
        "backward_64": {
            64: (Tile(64, 64, 4, 2, excludes="dropout"), Tile(32, 64, 4, 2)),
            128: (Tile(32, 64, 8, 2),),
        },
        "backward_128": {32: (), 64: (Tile(32, 128, 8, 2),)},
    },
    "sm_100": {
        "forward_long": {
            64: (Tile(128, 64, 8, 3),),
            128: (Tile(128, 64, 8, 3, excludes="dropout"), Tile(128, 32, 8, 3)),
            256: (Tile(64, 32, 8, 2),),
        },
        "forward_32": {64: (Tile(32, 32, 2, 2),), 128: (Tile(32, 32, 2, 2),), 256: (Tile(32, 32, 4, 2),)},
        "forward_64": {64: (Tile(64, 64, 4, 2),), 128: (Tile(64, 64, 8, 2),), 256: (Tile(64, 64, 8, 2),)},
        "forward_128": {64: (Tile(64, 128, 4, 2),)},
        "rotary_32": {64: (Tile(32, 32, 4, 1),), 128: (Tile(64, 32, 4, 1),)},
        "rotary_64": {64: (Tile(64, 64, 4, 1),), 128: (Tile(64, 64, 4, 1),)},
        "rotary_128": {64: (Tile(64, 128, 8, 1),), 128: (Tile(64, 128, 8, 1),)},
        "backward_rows": {64: (Tile(128, 64, 8, 3),), 128: (Tile(64, 32, 8, 2),), 256: (Tile(64, 32, 8, 2),)},
        "backward_keys": {
            64: (Tile(64, 128, 8, 2, excludes="dropout"), Tile(32, 128, 8, 2)),
            128: (Tile(32, 128, 8, 2),),
            256: (Tile(32, 64, 8, 2),),
        },
        "backward_32": {64: (Tile(32, 32, 2, 2),), 128: (Tile(32, 32, 4, 2),), 256: (Tile(32, 32, 8, 2),)},
        "backward_64": {
            64: (Tile(64, 64, 4, 2),),
            128: (Tile(64, 64, 4, 2, excludes="dropout"), Tile(64, 64, 8, 2)),
            256: (Tile(32, 64, 4, 2),),
        },
        "backward_128": {64: (Tile(64, 128, 8, 2),), 128: (Tile(32, 128, 8, 2),)},
    },
    "gfx942": {
        "forward_long": {
            64: (Tile(128, 64, 8, 3),),
            128: (Tile(128, 64, 4, 2, excludes="dropout"), Tile(128, 32, 4, 2)),
            256: (Tile(64, 64, 4, 1),),
        },
        "forward_32": {64: (Tile(32, 32, 2, 2),), 128: (Tile(32, 32, 2, 2),), 256: (Tile(32, 32, 2, 2),)},
        "forward_64": {64: (Tile(64, 64, 4, 2),), 128: (Tile(64, 64, 4, 2),), 256: (Tile(64, 64, 4, 1),)},
        "forward_128": {64: (Tile(64, 128, 4, 2),), 128: (Tile(64, 128, 4, 1),)},
        "rotary_32": {64: (Tile(32, 32, 2, 1),), 128: (Tile(32, 32, 2, 1),)},
        "rotary_64": {64: (Tile(64, 64, 4, 1),), 128: (Tile(64, 64, 4, 1),)},
        "rotary_128": {64: (Tile(64, 128, 4, 1),), 128: (Tile(64, 128, 4, 1),)},
        "backward_rows": {
            64: (Tile(64, 64, 4, 1, excludes="causal+window+sinks"), Tile(64, 32, 4, 2)),
            128: (Tile(64, 64, 4, 2, excludes="dropout"), Tile(64, 32, 4, 2)),
            256: (Tile(32, 32, 4, 1),),
        },
        "backward_keys": {
            64: (Tile(32, 128, 8, 2, excludes="dropout"), Tile(32, 64, 4, 2)),
            128: (Tile(64, 64, 4, 2, excludes="dropout"), Tile(32, 64, 4, 1)),
            256: (Tile(32, 64, 4, 1),),
        },
        "backward_32": {64: (Tile(32, 32, 2, 2),), 128: (Tile(32, 32, 2, 2),), 256: (Tile(32, 32, 4, 2),)},
        "backward_64": {64: (Tile(64, 64, 4, 2),), 128: (Tile(32, 64, 4, 2),)},
    },
    # float32 takes twice the registers: small tiles, and no classes of short sequences
    "sm_80 float32": {
        "forward_long": {64: (Tile(32, 32, 8, 2),), 128: (Tile(16, 32, 8, 1),)},
        "backward_rows": {64: (Tile(32, 32, 8, 2),), 128: (Tile(16, 32, 8, 1),)},
        "backward_keys": {64: (Tile(32, 32, 8, 2),), 128: (Tile(16, 16, 8, 1),)},
    },
    "sm_90 float32": {
        "forward_long": {64: (Tile(64, 32, 8, 2),), 128: (Tile(16, 32, 8, 1),)},
        "backward_rows": {64: (Tile(32, 32, 8, 2),), 128: (Tile(16, 16, 4, 1),)},
        "backward_keys": {64: (Tile(32, 32, 8, 2),), 128: (Tile(16, 16, 8, 1),)},
    },
    "sm_100 float32": {
        "forward_long": {64: (Tile(64, 32, 8, 2),), 128: (Tile(16, 32, 8, 1),)},
        "backward_rows": {64: (Tile(32, 32, 8, 2),), 128: (Tile(16, 32, 8, 1),)},
        "backward_keys": {64: (Tile(32, 32, 8, 2),), 128: (Tile(16, 16, 8, 1),)},
    },
    "gfx942 float32": {
        "forward_long": {64: (Tile(64, 32, 8, 2),), 128: (Tile(64, 32, 8, 2),)},
        "backward_rows": {64: (Tile(32, 32, 8, 2),), 128: (Tile(16, 16, 8, 1),)},
        "backward_keys": {64: (Tile(32, 32, 8, 1),), 128: (Tile(16, 32, 8, 1),)},
    },
}
# Cells of sm_120 where tiles of sm_80 spill.
_OF_SM_120: dict[str, Cells] = {
    "forward_long": {128: (Tile(64, 64, 8, 2),)},
    "rotary_32": {128: (Tile(16, 32, 4, 1),)},
    "rotary_64": {128: (Tile(16, 64, 8, 1),)},
    "rotary_128": {128: (Tile(16, 128, 8, 1),)},
    "backward_128": {64: (Tile(16, 128, 8, 2),)},
}
TABLES["sm_120"] = {name: cells | _OF_SM_120.get(name, {}) for name, cells in TABLES["sm_80"].items()}
TABLES["sm_120 float32"] = TABLES["sm_80 float32"] | {
    "backward_rows": {64: (Tile(32, 32, 8, 2),), 128: (Tile(16, 16, 8, 2),)}
}


def widest_head(dtype: torch.dtype) -> int:
    """Return the largest head size for which every architecture has tiles."""
    return 128 if dtype == torch.float32 else 256


@lru_cache(maxsize=64)  # called by every layer
def configuration(architecture: str | None, kind: Kind, dtype: torch.dtype) -> Passes:
    """Return the tiles for `kind` on `architecture`. Raises ValueError if the tables have no row for it."""
    row = f"{architecture} float32" if dtype == torch.float32 else str(architecture)
    if row not in TABLES:
        raise ValueError(f"attention has tiles for {', '.join(TABLES)}, not for {row}")
    width = next_power_of_2(max(kind.head_dim, kind.value_dim))

    def fits(tile: Tile) -> bool:
        excluded = SPECIALIZED_EXCLUDES if tile.path == "specialized" else tile.excludes
        return not any(all(getattr(kind, name) for name in both.split("+")) for both in excluded.split())

    def candidates(pass_name: str) -> tuple[Tile, ...]:
        cells = TABLES[row].get(pass_name, {})
        fitting = [widest for widest in cells if widest >= width]
        cell = _forced.get(pass_name, cells[min(fitting)] if fitting else ())
        return tuple(tile for tile in cell if fits(tile))

    def classes(direction: str) -> dict[int, Tile]:
        return {limit: tiles[0] for limit in CLASSES if (tiles := candidates(f"{direction}_{limit}"))}

    return Passes(
        forward_long=candidates("forward_long"),
        forward_short=classes("forward"),
        rotary=classes("rotary"),
        backward_rows=candidates("backward_rows")[0],
        backward_keys=candidates("backward_keys")[0],
        backward_short=classes("backward"),
    )


_forced: dict[str, tuple[Tile, ...]] = {}


@contextmanager
def override_tiles(**cells: tuple[Tile, ...]) -> Iterator[None]:
    """Use the given cells inside the block, for benchmarks and tests.

    Keywords are pass names as in TABLES. An empty cell removes its class of short sequences.
    """
    before = dict(_forced)
    _forced.update(cells)
    configuration.cache_clear()
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)
        configuration.cache_clear()
