"""Rules for the code: allowed imports between packages, and size limits for packages, files and functions."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from tests import ROOT

# The imports allowed in each package and top-level module; all may import `fastvec.errors` and fastvec's version.
MAY_IMPORT = {
    "fastvec_kernels": set[str](),
    "fastvec.system": set(),
    "fastvec.fingerprint": set(),
    "fastvec.report": set(),
    "fastvec.distributed": set(),
    "fastvec.stores": {"fastvec.system"},
    "fastvec.output": {"fastvec.stores", "fastvec.system", "fastvec.fingerprint"},
    "fastvec.shards": {"fastvec.fingerprint", "fastvec.output", "fastvec.stores", "fastvec.system"},
    "fastvec.corpus": {
        "fastvec.output",  # to exclude its files from the inputs
        "fastvec.stores",
        "fastvec.system",
    },
    "fastvec.checkpoints": {"fastvec.system"},
    "fastvec.texts": {"fastvec.checkpoints", "fastvec.system", "fastvec_kernels"},
    "fastvec.decoders": {"fastvec.texts", "fastvec.checkpoints", "fastvec.system", "fastvec_kernels"},
    "fastvec.settings": {"fastvec.decoders", "fastvec.texts", "fastvec.checkpoints"},
    "fastvec.forward": {"fastvec.settings", "fastvec.decoders", "fastvec.texts", "fastvec_kernels"},
    "fastvec.encoding": {
        "fastvec.checkpoints",
        "fastvec.corpus",  # what counts as a text column
        "fastvec.decoders",
        "fastvec.forward",
        "fastvec.output",  # how vectors are an Arrow column
        "fastvec.settings",
        "fastvec.system",
        "fastvec.texts",
        "fastvec_kernels",
    },
    "fastvec.encoder": {"fastvec.encoding", "fastvec.output", "fastvec.settings", "fastvec.texts"},
    "fastvec.ray": {"fastvec.encoder"},
    "fastvec.mteb": {"fastvec.encoder"},
    "fastvec.embedding": {
        "fastvec.corpus",
        "fastvec.checkpoints",
        "fastvec.decoders",
        "fastvec.encoder",
        "fastvec.fingerprint",
        "fastvec.output",
        "fastvec.report",
        "fastvec.settings",
        "fastvec.shards",
        "fastvec.stores",
        "fastvec.system",
        "fastvec.texts",
    },
    "fastvec.training.objectives": {
        "fastvec.corpus",
        "fastvec.checkpoints",
        "fastvec.decoders",
        "fastvec.texts",
        "fastvec_kernels",
    },
    "fastvec.training": {
        "fastvec.corpus",
        "fastvec.checkpoints",
        "fastvec.decoders",
        "fastvec.distributed",
        "fastvec.fingerprint",
        "fastvec.report",
        "fastvec.settings",
        "fastvec.system",
        "fastvec.texts",
        "fastvec.training.objectives",
    },
    "fastvec.run_report": {
        "fastvec.checkpoints",
        "fastvec.embedding",
        "fastvec.output",
        "fastvec.report",
        "fastvec.shards",
        "fastvec.stores",
        "fastvec.system",
        "fastvec.training",
    },
    "fastvec.evaluation": {
        "fastvec.checkpoints",
        "fastvec.corpus",
        "fastvec.encoder",
        "fastvec.encoding",
        "fastvec.output",
        "fastvec.settings",
        "fastvec.stores",
        "fastvec.system",
        "fastvec.training",  # its pairs
    },
    "fastvec.jobs": {
        "fastvec.corpus",
        "fastvec.embedding",
        "fastvec.encoder",
        "fastvec.fingerprint",
        "fastvec.output",
        "fastvec.report",
        "fastvec.run_report",
        "fastvec.settings",
        "fastvec.shards",
        "fastvec.system",
    },
    "fastvec.vectors": {
        "fastvec.corpus",  # the texts of the inputs
        "fastvec.encoder",
        "fastvec.fingerprint",
        "fastvec.output",
        "fastvec.settings",
        "fastvec.shards",
        "fastvec.stores",
        "fastvec.system",
    },
    "fastvec.retrieval": {
        "fastvec.checkpoints",
        "fastvec.corpus",
        "fastvec.encoder",
        "fastvec.encoding",
        "fastvec.output",
        "fastvec.stores",
        "fastvec.system",
        "fastvec.vectors",
    },
    "fastvec.maps": {
        "fastvec.corpus",  # what a string column is, and names of text columns
        "fastvec.output",
        "fastvec.system",
        "fastvec.vectors",
    },
    "fastvec.pairs": {"fastvec.output", "fastvec.system", "fastvec.vectors"},
    "fastvec.doctor": {
        "fastvec.decoders",
        "fastvec.encoder",
        "fastvec.jobs",
        "fastvec.output",
        "fastvec.settings",
        "fastvec.stores",
        "fastvec.system",
        "fastvec.texts",
        "fastvec_kernels",
    },
    "fastvec.cli": {
        "fastvec.corpus",
        "fastvec.distributed",
        "fastvec.doctor",
        "fastvec.embedding",
        "fastvec.encoder",
        "fastvec.evaluation",
        "fastvec.jobs",
        "fastvec.maps",
        "fastvec.output",
        "fastvec.pairs",
        "fastvec.retrieval",
        "fastvec.run_report",
        "fastvec.settings",
        "fastvec.shards",
        "fastvec.stores",
        "fastvec.system",
        "fastvec.training",
    },
    "fastvec.__main__": {"fastvec.cli"},
}
FOR_ALL = {"fastvec", "fastvec.errors"}
MODULES_OF_A_PACKAGE, LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 12, 350, 60


def package_of(module: str) -> str:
    """Return the longest name in MAY_IMPORT or FOR_ALL that is `module` or contains it."""
    found = [name for name in [*MAY_IMPORT, *FOR_ALL] if f"{module}.".startswith(f"{name}.")]
    return max(found, key=len)


@functools.cache
def files() -> dict[str, Path]:
    """Map module names to files; a package has the name of its folder."""
    found = {}
    for base in (ROOT, ROOT / "kernels"):
        for path in base.glob("fastvec*/**/*.py"):
            parts = path.relative_to(base).with_suffix("").parts
            found[".".join(parts[:-1] if path.name == "__init__.py" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Return fastvec's modules that a file imports anywhere in its code."""
    found, known = set(), files().keys()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found |= inside or {node.module}
    return found & known


def test_a_package_imports_only_what_it_may() -> None:
    wrong = []
    for module, path in files().items():
        own = package_of(module)
        if own not in FOR_ALL:
            allowed = {own, *FOR_ALL, *MAY_IMPORT[own]}
            wrong += [f"{module} imports {name}" for name in sorted(imports(path)) if package_of(name) not in allowed]
    assert wrong == []


def test_no_permission_is_unused() -> None:
    used: dict[str, set[str]] = {name: set() for name in MAY_IMPORT}
    for module, path in files().items():
        if (own := package_of(module)) in used:
            used[own] |= {package_of(name) for name in imports(path)}
    assert {name: allowed - used[name] for name, allowed in MAY_IMPORT.items() if allowed - used[name]} == {}


def test_packages_do_not_import_each_other_in_a_circle() -> None:
    order = list(TopologicalSorter(MAY_IMPORT).static_order())  # raises CycleError
    assert set(order) == MAY_IMPORT.keys()


def test_no_module_imports_itself_through_others() -> None:
    graph = {module: imports(path) - {module} for module, path in files().items() if path.name != "__init__.py"}
    assert set(TopologicalSorter(graph).static_order()) >= graph.keys()  # raises CycleError


def test_a_package_is_small_and_says_what_it_is() -> None:
    wrong = []
    for module, path in files().items():
        if path.name == "__init__.py":
            count = len([other for other in path.parent.glob("*.py") if other.name != "__init__.py"])
            wrong += [f"{module} has {count} modules"] * (count > MODULES_OF_A_PACKAGE)
            wrong += [f"{module} has no docstring"] * (ast.get_docstring(ast.parse(path.read_text())) is None)
    assert wrong == []


def test_files_and_functions_are_small() -> None:
    large = []
    for path in [*files().values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        source = path.read_text()
        large += [f"{path.name}: {len(source.splitlines())} lines"] * (len(source.splitlines()) > LINES_OF_A_FILE)
        large += [f"{path.name}: {name} has {lines} lines" for name, lines in functions(source)]
    assert large == []


def functions(source: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            if lines > LINES_OF_A_FUNCTION:
                yield node.name, lines


def test_a_job_is_planned_without_torch_and_fsspec() -> None:
    modules = "fastvec.embedding.job, fastvec.output.verify, fastvec.training.job"
    script = f"import sys, {modules}; sys.exit(not {{'torch', 'fsspec'}}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_every_kernel_has_a_test() -> None:
    kernels = {module.split(".")[1] for module in files() if module.startswith("fastvec_kernels.")}
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests/kernels").glob("test_*.py")}
    assert {kernel for kernel in kernels if not kernel.startswith("_")} <= tests


def test_all_but_kernels_is_annotated() -> None:
    """mypy does not require annotations in the kernels' package, because Triton defines the kernels' signatures."""
    bare = []
    for path in (ROOT / "kernels/fastvec_kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and not any("jit" in ast.unparse(x) for x in node.decorator_list):
                given = [one for one in ast.walk(node.args) if isinstance(one, ast.arg)]
                whole = all(one.annotation or one.arg in ("self", "cls") for one in given)
                bare += [f"{path.name}: {node.name}"] * (not whole or node.returns is None)
    assert bare == []


def test_kernels_folder_is_no_package() -> None:
    assert not (ROOT / "kernels/__init__.py").exists()  # it would shadow Hugging Face's package `kernels`
