from fastvec.doctor.versions import check_extras, check_packages, check_python
from tests.doctor.conftest import Machine

FOUND = "torch 2.12.0+cu128, triton 3.6.0, transformers 5.20.0, numpy 2.4.0"


def test_all_is_as_the_metadata_says(machine: Machine) -> None:
    assert check_python() == ("ok", "3.12.3 on Linux-6.8.0-x86_64-with-glibc2.39")
    assert check_packages() == ("ok", FOUND)
    assert check_extras() == ("ok", "none")


def test_a_package_below_its_bound_and_one_that_is_missing(machine: Machine) -> None:
    machine.packages |= {"torch": ["2.9.1"], "transformers": []}
    assert check_packages() == (
        "FAILED",
        "torch 2.9.1 was found, expected >=2.10: pip install 'torch>=2.10'; "
        "transformers is missing, expected >=5.17: pip install 'transformers>=5.17'; "
        "torch 2.9.1, triton 3.6.0, numpy 2.4.0",
    )


def test_a_development_version_is_within_the_bounds(machine: Machine) -> None:
    machine.packages["torch"] = ["2.14.0.dev20260110+cu128"]
    assert check_packages()[0] == "ok"


def test_a_triton_that_torch_does_not_ask_for(machine: Machine) -> None:
    machine.packages["triton"] = ["3.9.0"]
    asked = "triton 3.9.0 was found, and torch 2.12.0+cu128 asks for ==3.6.0: pip install 'triton==3.6.0'"
    assert check_packages() == ("note", f"{asked}; {FOUND.replace('3.6.0', '3.9.0')}")


def test_two_torch(machine: Machine) -> None:
    machine.packages["torch"] = ["2.12.0+cu128", "2.13.0+cpu"]
    result, detail = check_packages()
    assert result == "note"
    assert detail.startswith("torch is installed 2 times (2.12.0+cu128, 2.13.0+cpu), and the first is used: uninstall")


def test_an_old_python(machine: Machine) -> None:
    machine.python = "3.10.14"
    assert check_python() == (
        "FAILED",
        "fastvec needs Python >=3.11: install that, and fastvec into it; 3.10.14 on Linux-6.8.0-x86_64-with-glibc2.39",
    )


def test_extras_that_are_installed(machine: Machine) -> None:
    machine.packages["s3fs"] = ["2026.10.0"]
    assert check_extras() == ("ok", "s3 (s3fs 2026.10.0)")
    machine.packages["s3fs"] = ["2025.1.0"]
    expected = "s3: s3fs 2025.1.0 was found, expected >=2026.9: pip install 's3fs>=2026.9'; none"
    assert check_extras() == ("note", expected)
