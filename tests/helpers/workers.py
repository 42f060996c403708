"""Encoders that processes of a test load, and which end the process at a chosen moment."""

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

from fastvec import Encoder
from fastvec.errors import FastvecError, ModelError
from fastvec.jobs.worker import LoadEncoder
from fastvec.settings import EncoderSettings


def dying(file: Path, deaths: int, *, at_load: bool = False) -> LoadEncoder:
    """Return what loads an encoder that kills its process at its first chunk, in as many processes as `deaths`.

    `file` counts the deaths. With `at_load`, the process dies while it loads the model.
    """
    return partial(_load_dying, file, deaths, at_load)


def _load_dying(file: Path, deaths: int, at_load: bool, settings: EncoderSettings) -> Encoder:
    if at_load:
        _die(file, deaths)
    encoder = Encoder(settings)
    begin = encoder.begin

    def begin_or_die(*arguments: Any) -> Any:
        _die(file, deaths)
        return begin(*arguments)

    encoder.begin = begin_or_die  # type: ignore[method-assign,assignment]
    return encoder


def _die(file: Path, deaths: int) -> None:
    for death in range(deaths):
        try:
            os.close(os.open(f"{file}{death}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        os.kill(os.getpid(), signal.SIGKILL)


def waiting(seconds: float) -> LoadEncoder:
    """Return what loads an encoder that takes so many seconds longer for each chunk."""
    return partial(_load_waiting, seconds)


def _load_waiting(seconds: float, settings: EncoderSettings) -> Encoder:
    encoder = Encoder(settings)
    begin = encoder.begin

    def begin_later(*arguments: Any) -> Any:
        time.sleep(seconds)
        return begin(*arguments)

    encoder.begin = begin_later  # type: ignore[method-assign,assignment]
    return encoder


def stuck(folder: Path) -> LoadEncoder:
    """Return what loads an encoder for 20 s: it makes the file `stuck` in `folder` before, and `moves` after that."""
    return partial(_load_stuck, folder)


def _load_stuck(folder: Path, settings: EncoderSettings) -> Encoder:
    (folder / "stuck").touch()
    time.sleep(20)
    (folder / "moves").touch()
    return Encoder(settings)


def signalled(settings: EncoderSettings) -> Encoder:
    """Load an encoder in a process that gets the signals which a scheduler sends to all processes of a job."""
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    return Encoder(settings)


class UnreadableError(FastvecError):
    """An error that can be pickled but not unpickled."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name} {number}")


def unreadable(settings: EncoderSettings) -> Encoder:
    """Fail with an error that another process cannot read."""
    raise UnreadableError("model", 1)


def wrong(settings: EncoderSettings) -> Encoder:
    """Fail as a program does that has a mistake."""
    raise ZeroDivisionError


def failing(settings: EncoderSettings) -> Encoder:
    """Fail as a model does that cannot be loaded."""
    raise ModelError(f"{settings.checkpoint.name} is broken: choose another")
