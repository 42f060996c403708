"""Check Python and the installed packages against the bounds in fastvec's own metadata."""

import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fastvec.doctor.report import Outcome, outcome

# in this order, of those that fastvec requires; then the others
FIRST = ("torch", "triton", "transformers", "tokenizers", "pyarrow", "numpy")
# of pyproject.toml, what a user of the command may install; the others are for developers
EXTRAS = ("azure", "eval", "faiss", "gcs", "lance", "map", "mteb", "ray", "report", "s3", "sentencepiece", "train")


def check_python() -> Outcome:
    found = f"{platform.python_version()} on {platform.platform()}"
    bounds = metadata.metadata("fastvec")["Requires-Python"]
    if platform.python_version() not in SpecifierSet(bounds, prereleases=True):
        return outcome(found, failures=[f"fastvec needs Python {bounds}: install that, and fastvec into it"])
    if sys.platform == "win32":
        return outcome(found, notes=["files are not locked on Windows: never start two runs with one output"])
    return outcome(found)


def check_packages() -> Outcome:
    required = {one.name: one for one in _requirements()}
    names = sorted(required, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    found, notes, failures = [], [], []
    for name in names:
        copies = _copies(name)
        if not copies:
            failures.append(f"{name} is missing, expected {required[name].specifier}: {_install(required[name])}")
            continue
        found.append(f"{name} {copies[0]}")
        if problem := _out_of_bounds(required[name], copies[0]):
            failures.append(problem)
        if len(copies) > 1:
            notes.append(
                f"{name} is installed {len(copies)} times ({', '.join(copies)}), and the first is used: "
                "uninstall the others, or begin with a new environment"
            )
    if problem := _wrong_triton():
        notes.append(problem)
    return outcome(", ".join(found), notes=notes, failures=failures)


def check_extras() -> Outcome:
    installed, notes = [], []
    for extra in EXTRAS:
        required = list(_requirements(extra))
        versions = {one.name: copies[0] for one in required if (copies := _copies(one.name))}
        if not required or len(versions) < len(required):
            continue
        problems = [problem for one in required if (problem := _out_of_bounds(one, versions[one.name]))]
        notes += [f"{extra}: {problem}" for problem in problems]
        installed += [f"{extra} ({', '.join(f'{name} {versions[name]}' for name in versions)})"] * (not problems)
    return outcome(", ".join(installed) or "none", notes=notes)


def _requirements(extra: str = "") -> Iterator[Requirement]:
    """Yield what fastvec requires here, or what one of its extras adds."""
    for line in metadata.requires("fastvec") or ():
        one = Requirement(line)
        always = one.marker is None or one.marker.evaluate({"extra": ""})
        if always != bool(extra) and (one.marker is None or one.marker.evaluate({"extra": extra})):
            yield one


def _copies(name: str) -> list[str]:
    """Return the versions of a package that are installed, that which is imported first."""
    places: dict[str, str] = {}  # lib and lib64 may be the same folder
    for one in metadata.distributions(name=name):
        places.setdefault(os.path.realpath(str(one.locate_file(""))), one.version)
    return list(places.values())


def _out_of_bounds(required: Requirement, version: str) -> str | None:
    if required.specifier.contains(version, prereleases=True):
        return None
    return f"{required.name} {version} was found, expected {required.specifier}: {_install(required)}"


def _install(required: Requirement) -> str:
    extras = f"[{','.join(sorted(required.extras))}]" if required.extras else ""
    return f"pip install '{required.name}{extras}{required.specifier}'"


def _wrong_triton() -> str | None:
    """Return the problem if torch, of which a build for GPUs asks for one version of Triton, has another one."""
    torch, found = metadata.distribution("torch"), _copies("triton")
    for line in torch.requires or ():
        one = Requirement(line)
        here = one.marker is None or one.marker.evaluate({"extra": ""})
        if one.name == "triton" and here and found and not one.specifier.contains(found[0], prereleases=True):
            asked = f"torch {torch.version} asks for {one.specifier}"
            return f"triton {found[0]} was found, and {asked}: pip install 'triton{one.specifier}'"
    return None
