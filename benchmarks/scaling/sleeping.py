"""An encoder that waits as long as a GPU of a given rate would compute, and uses no processor for that.

Texts are read, tokenized and written as in any job. Each process appends to a file of its own when its device was busy.
"""

import json
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastvec.encoder import Encoder, SubmittedChunk
from fastvec.encoding.chunk_encoder import Encoded
from fastvec.jobs.worker import LoadEncoder
from fastvec.settings import EncoderSettings
from fastvec.texts.batching import token_budget
from fastvec.texts.load import load_tokenizer
from fastvec.texts.tokenized import TokenizedTexts


class SleepingEncoder(Encoder):
    """An encoder whose device computes `rate` tokens a second, one chunk after another. All its vectors are the same.

    Chunks are as large as those of a model with this many `parameters` on a GPU. `log` is a folder.
    """

    def __init__(self, settings: EncoderSettings, *, rate: float, parameters: int, log: Path) -> None:
        self._log = log / f"{os.getpid()}.jsonl"
        self._note(loading=time.monotonic(), cpu=time.process_time())
        self.settings = replace(settings, device="cuda")  # a run then has the stages that it has with a GPU
        self.parameters, self.agreement = parameters, None
        self.batch_tokens = token_budget("cuda", parameters, 2)
        self._tokenizer = load_tokenizer(settings.checkpoint)
        self._rate = rate
        self._ends: deque[float] = deque([0.0])  # of the chunks that were begun, and of the last one that is finished

    @property
    def choices(self) -> dict[str, Any] | None:
        return None

    def measure_for(self, text_bytes: int) -> None:
        pass

    @property
    def environment(self) -> dict[str, str]:
        return {"device": "none, it sleeps"}

    @property
    def torch_ops(self) -> tuple[str, ...]:
        return ()

    def begin(self, texts: TokenizedTexts, between_batches: Callable[[], None] = lambda: None) -> SubmittedChunk:
        """Submit a chunk, which the device begins when it has finished the one before."""
        between_batches()
        begin = max(time.monotonic(), self._ends[-1])
        self._ends.append(begin + len(texts.ids) / self._rate)
        self._note(begin=begin, end=self._ends[-1], tokens=len(texts.ids))
        vectors, finite = torch.zeros(len(texts.spans), self.dims), torch.ones(len(texts.spans), dtype=torch.bool)
        vectors[:, 0] = 1
        return SubmittedChunk(texts=texts, vectors=vectors, finite=finite, failed={}, batch_tokens=self.batch_tokens)

    def finish(self, begun: SubmittedChunk) -> Encoded:
        """Wait until the device would have finished the chunk, the oldest one that was begun."""
        self._ends.popleft()
        time.sleep(max(self._ends[0] - time.monotonic(), 0))
        return super().finish(begun)

    def _note(self, **fields: float) -> None:
        with self._log.open("a") as file:
            file.write(json.dumps(fields) + "\n")


def sleeping(*, rate: float, parameters: int, log: Path) -> LoadEncoder:
    """Return what loads a SleepingEncoder in a worker process."""
    return partial(SleepingEncoder, rate=rate, parameters=parameters, log=log)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceLog:
    """When one process loaded its encoder and its device computed, in seconds of the machine's monotonic clock.

    `imports` are the seconds of the CPU that it had used when it began to load the encoder.
    """

    loading: float
    imports: float
    begin: float  # of the first chunk
    end: float  # of the last chunk
    busy: float
    tokens: int


def read_logs(folder: Path) -> list[DeviceLog]:
    """Return what the processes noted of which the device computed anything."""
    logs = []
    for path in sorted(folder.glob("*.jsonl")):
        head, *chunks = map(json.loads, path.read_text().splitlines())
        if chunks:
            logs.append(
                DeviceLog(
                    loading=head["loading"],
                    imports=head["cpu"],
                    begin=chunks[0]["begin"],
                    end=chunks[-1]["end"],
                    busy=sum(chunk["end"] - chunk["begin"] for chunk in chunks),
                    tokens=sum(chunk["tokens"] for chunk in chunks),
                )
            )
    return logs
