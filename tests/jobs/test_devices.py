import pytest

from fastvec import Encoder, embed
from fastvec.errors import UsageError
from fastvec.jobs.devices import parse_devices
from tests import ARTICLES


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 16 cores and two GPUs, of which the environment says nothing."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def threads(number: int) -> dict[str, str]:
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(number))


def test_cpu_processes_divide_the_threads() -> None:
    found = parse_devices("cpu:4")
    assert found is not None
    assert found.kind == "cpu"
    assert found.environments == ({**threads(4), "CUDA_VISIBLE_DEVICES": ""},) * 4


def test_the_users_number_of_threads_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = parse_devices("cpu:40")
    assert found is not None
    assert found.environments[0] == {
        "MKL_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


@pytest.mark.parametrize(
    ("given", "visible", "expected"),
    [("all", None, ["0", "1"]), ("1", None, ["1"]), ("all", "3,GPU-5e", ["3", "GPU-5e"]), ("1,0", "4,7", ["7", "4"])],
)
def test_each_process_sees_one_gpu(
    given: str, visible: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = parse_devices(given)
    assert found is not None
    assert found.kind == "cuda"
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found.environments] == expected
    assert found.environments[0]["OMP_NUM_THREADS"] == str(16 // len(expected))


def test_all_gpus_of_a_machine_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert parse_devices("all") is None
    with pytest.raises(UsageError, match="device 0 does not exist: the number of GPUs here is none; give cpu:4"):
        parse_devices("0")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cuda", "devices 'cuda' are not known: give all, numbers of GPUs such as 0,1, or cpu:4"),
        ("cpu:0", "devices 'cpu:0' are not known"),
        ("0,0", "devices '0,0' name a GPU twice; name it once"),
        ("2", "device 2 does not exist: the number of GPUs here is 2, numbered from 0"),
    ],
)
def test_devices_that_cannot_be(given: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_devices(given)


def test_devices_of_another_kind_than_the_encoder_are_refused(encoder: Encoder, tmp_path_factory: object) -> None:
    with pytest.raises(UsageError, match="--devices 0 and --device cpu contradict each other: leave one out"):
        embed([ARTICLES], "vecs/", encoder=encoder, column="text", devices="0")
