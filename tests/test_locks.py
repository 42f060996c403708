"""The lock files satisfy pyproject.toml, and every file that they allow has a hash."""

import re
import tomllib
from collections.abc import Sequence

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests import ROOT

ENVIRONMENTS = [
    {"python_version": minor, "python_full_version": f"{minor}.0", "sys_platform": system, "platform_system": name}
    for minor in ("3.11", "3.12", "3.13")
    for system, name in (("linux", "Linux"), ("darwin", "Darwin"), ("win32", "Windows"))
]
ENTRY = re.compile(
    r"(?P<name>[a-z0-9.-]+)==(?P<version>[\w.]+)(?: ; (?P<marker>[^\\]+))?(?P<hashes>( \\\n +--hash=\S+)+)"
)


def entries(name: str) -> list[dict[str, str]]:
    header, content = (ROOT / name).read_text().split("\n", 1)
    assert header.startswith("# ")
    found = ENTRY.finditer(content)
    rest = ENTRY.sub("", content).strip()
    assert rest == "", f"{name} has more than pinned packages: {rest[:200]}"
    return [match.groupdict() for match in found]


def installed(pinned: Sequence[dict[str, str]], environment: dict[str, str]) -> dict[str, Version]:
    """Return the version of each package that pip installs from the lock in this environment."""
    chosen: dict[str, Version] = {}
    for entry in pinned:
        if entry["marker"] is None or Marker(entry["marker"]).evaluate(environment):
            assert entry["name"] not in chosen, f"{entry['name']} has two versions for {environment}"
            chosen[entry["name"]] = Version(entry["version"])
    return chosen


@pytest.mark.parametrize(("lock", "left_out"), [("requirements.lock", set()), ("requirements-cpu.lock", {"torch"})])
def test_a_lock_has_what_the_package_asks_for(lock: str, left_out: set[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = entries(lock)
    for environment in ENVIRONMENTS:
        chosen = installed(pinned, environment)
        for requirement in map(Requirement, project["dependencies"]):
            name = canonicalize_name(requirement.name)
            if requirement.marker is not None and not requirement.marker.evaluate(environment):
                continue
            assert (name in chosen) == (name not in left_out), f"{name} in {environment}"
            assert name in left_out or chosen[name] in requirement.specifier, f"{name} {chosen[name]}"


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-cpu.lock"])
def test_a_lock_has_sha256_alone_and_names_no_index(lock: str) -> None:
    for entry in entries(lock):
        for found in re.findall(r"--hash=(\S+)", entry["hashes"]):
            assert re.fullmatch("sha256:[0-9a-f]{64}", found), entry["name"]
    assert not re.search(r"://|--index|--find-links|file:", (ROOT / lock).read_text())


def test_the_two_locks_have_the_same_versions() -> None:
    assert [entry for entry in entries("requirements-cpu.lock") if entry not in entries("requirements.lock")] == []
