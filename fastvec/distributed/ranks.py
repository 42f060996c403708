"""What the ranks of a job do together: start, wait for what rank 0 does for all, and report an error once.

A rank that fails does not tell the others. It notes in the store of torchrun that it has failed, prints its error, and
ends; the others then lose their connection to it, or torchrun ends them. They find the note, and end in silence.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from fastvec.errors import FastvecError, LostProcessError

Result = TypeVar("Result")

PATIENCE = timedelta(minutes=30)  # of ranks that wait while the first one evaluates or saves
STORE_SECONDS = 10  # to reach the store, which is gone if its host is
LOST = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe")  # in errors of a broken connection


def own_rank() -> int:
    return int(os.environ.get("RANK", "0"))  # set by torchrun, like WORLD_SIZE


def number_of_ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_ranks(device: str) -> None:
    """Connect to the other ranks, if there are any; on GPUs, each rank takes the one of its local number."""
    if number_of_ranks() == 1:
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():  # by an earlier job of this process
        return
    if device == "cpu":
        dist.init_process_group("gloo", timeout=PATIENCE)
    else:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE)  # gloo for `on_rank_0`


def on_rank_0(call: Callable[[], Result]) -> Result:
    """Call `call` on rank 0 only, and return its result, which must be picklable, on every rank.

    Ranks that look at files by themselves can find different things, because files change meanwhile.
    """
    if number_of_ranks() == 1:
        return call()
    import torch
    import torch.distributed as dist

    box = [call() if own_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]  # type: ignore[return-value]  # rank 0 filled it


@contextmanager
def one_report() -> Iterator[None]:
    """Let an error leave the block only in the first rank that fails; in others, SystemExit with its exit code does.

    Raises LostProcessError in the first rank that finds another one gone, which was killed.
    """
    if number_of_ranks() == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        # torchrun sends it as soon as a process is gone; this one ends anyway, after it has said why
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not _is_first_to_fail():
            raise SystemExit(error.exit_code if isinstance(error, FastvecError) else 1) from None
        if _is_lost_connection(error):
            raise LostProcessError(
                f"rank {own_rank()} lost its connection to another rank, whose process or machine ended: run the same "
                "command again to resume from the last checkpoint"
            ) from None
        raise


def _is_first_to_fail() -> bool:
    """Count this rank's failure in the store; without a store, every rank counts as the first."""
    from torch import distributed as dist

    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]  # public, but compiled
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=STORE_SECONDS),
        )
        failures: int = store.add(f"fastvec/failures/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1)
    except (RuntimeError, KeyError):
        return True
    return failures == 1


def _is_lost_connection(error: Exception) -> bool:
    from torch.distributed import DistError

    return isinstance(error, RuntimeError) and (
        isinstance(error, DistError) or any(sign in str(error).lower() for sign in LOST)
    )
