"""Reads an input file as a job does, in a process with limits on memory and time, and says how that ended.

The process is a fork of this one, which takes milliseconds; this one may therefore have no threads. What counts as its
memory is what is resident at its peak: a reader may reserve more, if it does not use it. RLIMIT_DATA only protects the
machine.
"""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa

from fastvec.corpus import __file__ as corpus_package
from fastvec.corpus.columns import holds_text
from fastvec.corpus.formats.source import open_source
from fastvec.corpus.opening import open_corpus
from fastvec.corpus.reader import ChunkLimits
from fastvec.errors import FastvecError

LONGEST_REASON = 2000  # characters of a line
LIMITS = ChunkLimits(rows=4096, bytes=4 << 20)
READ, REFUSED = "read", "refused"
CRASHED, FAILED, TOO_LARGE, TOO_SLOW = "CRASHED", "FAILED", "TOO LARGE", "TOO SLOW"
CODE = os.path.dirname(corpus_package)


@dataclass(frozen=True, kw_only=True, slots=True)
class Allowance:
    """What a trial may take: bytes of memory, in addition to what a process has at its start, and seconds.

    More than `limit` bytes cannot be allocated at all.
    """

    memory: int = 1 << 30
    seconds: int = 60
    limit: int = 4 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a trial ended. A file may be read or refused in one line; every other status is a defect of the reader.

    `digest` is the hash of the texts and of the kept columns. `reached` has the lines of fastvec.corpus that ran, if
    they were traced.
    """

    status: str
    reason: str = ""
    rows: int = 0
    repaired: int = 0
    bad: int = 0
    digest: str = ""
    columns: Sequence[str] = ()
    reached: Sequence[str] = field(default=(), repr=False)
    seconds: float = 0.0
    peak: int = 0  # bytes

    @property
    def sound(self) -> bool:
        return self.status in (READ, REFUSED)


def trial(
    path: Path,
    *,
    column: str | None = None,
    keep: Sequence[str] | None = (),
    allowance: Allowance = Allowance(),
    traced: bool = False,
) -> Outcome:
    """Read `path` in a process of its own."""
    return in_process(lambda: read_whole(path, column, keep), allowance, traced=traced)


def read_whole(path: Path, column: str | None, keep: Sequence[str] | None) -> dict[str, Any]:
    """Read a corpus of one file to its end. Raises what the reader raises."""
    corpus = open_corpus([path], column=column, keep=keep)
    rows = repaired = bad = 0
    digest = blake2b(digest_size=8)
    for chunk in corpus.chunks(LIMITS):
        rows, repaired, bad = rows + chunk.kept.num_rows, repaired + chunk.repaired, bad + len(chunk.bad)
        for batch in (pa.record_batch([chunk.texts], ["text"]), chunk.kept):
            batch.validate(full=True)
            digest.update(batch.serialize())
    if rows != corpus.rows:
        raise AssertionError(f"{corpus.rows} rows were promised, {rows} were read")
    list(corpus.locate(range(min(rows, 100))))
    return {"status": READ, "rows": rows, "repaired": repaired, "bad": bad, "digest": digest.hexdigest()}


def text_columns(path: Path, allowance: Allowance) -> Outcome:
    """Return an outcome whose `columns` are the names of those that could be embedded; fields of structs too."""

    def find() -> dict[str, Any]:
        names: list[str] = []

        def add(prefix: str, fields: Any) -> None:
            for one in fields:
                if holds_text(one.type):
                    names.append(prefix + one.name)
                elif pa.types.is_struct(one.type):
                    add(f"{prefix}{one.name}.", one.type)

        add("", open_source(path).schema)
        return {"status": READ, "columns": names}

    return in_process(find, allowance)


def in_process(function: Callable[[], dict[str, Any]], allowance: Allowance, *, traced: bool = False) -> Outcome:
    """Return the outcome of `function`, which returns its fields, in a fork of this process."""
    receive, send = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        _child(function, allowance, send, traced)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        answer = pipe.read()
    _, status, usage = os.wait4(pid, 0)
    measured: dict[str, Any] = {"seconds": time.monotonic() - started, "peak": usage.ru_maxrss << 10}
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        slow = number in (signal.SIGALRM, signal.SIGXCPU)
        return Outcome(status=TOO_SLOW if slow else CRASHED, reason=signal.Signals(number).name, **measured)
    if not answer:
        return Outcome(status=CRASHED, reason=f"exit code {os.waitstatus_to_exitcode(status)}", **measured)
    fields = json.loads(answer)
    if measured["peak"] > fields.pop("start") + allowance.memory:
        fields |= {"status": TOO_LARGE, "reason": f"{measured['peak'] >> 20:,} MiB; {fields.get('reason', '')}"}
    return Outcome(**fields, **measured)


def _child(function: Callable[[], dict[str, Any]], allowance: Allowance, send: int, traced: bool) -> None:
    """Run `function`, send its outcome and end the process."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + allowance.limit,) * 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(allowance.seconds)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    reached: set[str] = set()
    if traced:
        sys.settrace(lambda frame, event, argument: _trace(frame, reached))
    try:
        answer = function()
    except FastvecError as error:
        answer = _refusal(error)
    except BaseException as error:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = "" if place is None else f" in {Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}"
        answer = {"status": FAILED, "reason": f"{type(error).__name__}: {error}{where}"[:500]}
    sys.settrace(None)
    with suppress(BrokenPipeError), os.fdopen(send, "w") as pipe:
        json.dump({**answer, "reached": sorted(reached), "start": start}, pipe)
    os._exit(0)


def _refusal(error: FastvecError) -> dict[str, Any]:
    reason = str(error)
    status = REFUSED if reason.isprintable() and len(reason) < LONGEST_REASON else FAILED
    return {"status": status, "reason": reason[:LONGEST_REASON]}


def _trace(frame: FrameType, reached: set[str]) -> Any:
    name = frame.f_code.co_filename
    if not name.startswith(CODE):
        return None
    short = name[len(CODE) + 1 :]

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        reached.add(f"{short}:{frame.f_lineno}")
        return line

    return line


def data_bytes() -> int:
    """Return what RLIMIT_DATA counts of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[5]) * resource.getpagesize()
