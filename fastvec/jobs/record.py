"""Decides what all shards of a job share: the first worker does, later ones and resumes read it in the folder.

So the shards are cut into the same chunks, computed in the same way and stored with the same ranges, whoever embeds
them.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING
from uuid import uuid4

from fastvec.corpus.reader import ChunkLimits
from fastvec.embedding.encoded_chunks import ChunkEmbedder
from fastvec.embedding.job import chunk_limits
from fastvec.embedding.plan import EmbedPlan
from fastvec.errors import OutputError
from fastvec.fingerprint import Json, refuse_another_job
from fastvec.output.earlier import EarlierVectors
from fastvec.shards.folder import Folder
from fastvec.shards.record import RECORD, Record, read_record

if TYPE_CHECKING:  # a finished or refused job must not import torch
    from fastvec.encoder import Encoder


def new_id() -> str:
    return uuid4().hex[:16]


def make_record(
    plan: EmbedPlan,
    encoder: "Encoder",
    earlier: EarlierVectors | None,
    folder: Folder,
    *,
    shard_rows: int,
    batch_tokens: int | None,
) -> Record:
    """Decide what all shards share, and publish it; returns the record of another process if that was first.

    On a CPU this measures what is fastest. Ranges of int8 vectors come from the first texts, which are embedded for it.
    Raises RefusedError if the other process does another job.
    """
    limits = chunk_limits(plan, encoder, shard_rows)
    encoder.measure_for(plan.text_bytes)
    ranges = None
    if plan.options.vector_dtype == "int8" and earlier is None:
        with encoder.batches_of(batch_tokens):  # which decides how sums round
            first = ChunkEmbedder(plan, encoder, earlier).first_ranges(ChunkLimits(**limits))
        ranges = [float(value) for value in first]
    own = Record(id=new_id(), fingerprint=plan.fingerprint, limits=limits, choices=encoder.choices, ranges=ranges)
    if own.write(folder):
        return own
    found = read_record(folder)
    if found is None:
        raise OutputError(f"{folder.location}/{RECORD} disappeared while it was read; run the command again")
    require_same_job(folder, found.fingerprint, plan)
    return found


def require_same_job(folder: Folder, fingerprint: Mapping[str, Json], plan: EmbedPlan) -> None:
    """Raise RefusedError with the differences if the folder is that of another job."""
    refuse_another_job(folder.location, fingerprint, plan.fingerprint)
