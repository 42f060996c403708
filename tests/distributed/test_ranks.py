import os
import signal
from collections.abc import Iterator

import pytest
from torch import distributed as dist

from fastvec.distributed.ranks import number_of_ranks, on_rank_0, one_report
from fastvec.errors import InputError, LostProcessError

GONE = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:26525")


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be rank 1 of two, with a store as torchrun has one."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "RANK": 1, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
    del store


def test_a_single_process_does_everything_itself() -> None:
    assert number_of_ranks() == 1
    assert on_rank_0(lambda: "done") == "done"
    with pytest.raises(RuntimeError, match="Connection closed"), one_report():
        raise GONE


@pytest.mark.usefixtures("second_of_two")
def test_the_first_rank_that_fails_reports_and_the_others_only_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such file"), one_report():
        raise InputError("no such file")
    for error in (InputError("no such file"), GONE, ZeroDivisionError("a bug")):
        with pytest.raises(SystemExit) as ended, one_report():
            raise error
        assert ended.value.code == 1
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # torchrun started all ranks again
    with pytest.raises(ZeroDivisionError), one_report():
        raise ZeroDivisionError("a bug")


@pytest.mark.usefixtures("second_of_two")
def test_a_rank_that_lost_another_says_so_in_one_line() -> None:
    with pytest.raises(LostProcessError, match=r"rank 1 lost .* run the same command again") as caught, one_report():
        raise GONE
    assert "\n" not in str(caught.value)
    os.kill(
        os.getpid(), signal.SIGTERM
    )  # torchrun sends it at once, and it must not end the process before the message


def test_without_a_store_every_rank_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = signal.getsignal(signal.SIGTERM)
    for _ in range(2):
        with pytest.raises(InputError), one_report():
            raise InputError("no such file")
    signal.signal(signal.SIGTERM, before)
