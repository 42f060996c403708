"""The import graph has floors; a module may import only from floors below its own. And files stay small."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from tests import ROOT

FLOORS = [
    {"fastvec.__main__"},
    {"fastvec.cli.entry"},
    {"fastvec.embedding.job", "fastvec.embedding.estimate", "fastvec.cli.progress", "fastvec.training.job"},
    {
        "fastvec.embedding.plan",
        "fastvec.embedding.tokenized_chunks",
        # what an adaptation is made of
        "fastvec.training.objectives.contrastive",
        "fastvec.training.monitor",
        "fastvec.training.metrics",
        "fastvec.training.objectives.distillation",
        "fastvec.training.objectives.readout",
        "fastvec.training.evaluation",
        "fastvec.training.saved_folder",
        "fastvec.training.objectives.language_head",
        "fastvec.training.learner",
        "fastvec.training.objectives.noise",
        "fastvec.training.scored_pairs",
        "fastvec.training.plan",
        "fastvec.training.recipe",
        "fastvec.training.stream",
        "fastvec.training.objectives.mntp",
        "fastvec.training.trainer",
        "fastvec.training.work_folder",
    },
    {"fastvec.encoder", "fastvec.corpus.reader", "fastvec.output.writer", "fastvec.output.inspection"},
    {
        # how a checkpoint is run
        "fastvec.decoders.agreement",
        "fastvec.checkpoints.settings",
        "fastvec.decoders.from_transformers",
        "fastvec.checkpoints.checkpoint",
        "fastvec.checkpoints.remote_code",
        "fastvec.texts.special_tokens",
        "fastvec.checkpoints.sentence_transformers",
        "fastvec.decoders.adapters",
        "fastvec.checkpoints.bundled",
        "fastvec.checkpoints.hub",
        "fastvec.checkpoints.model_files",
        "fastvec.decoders.packed_transformers",
        "fastvec.decoders.dense",
        "fastvec.checkpoints.families",
        "fastvec.texts.prompt",
        "fastvec.decoders.fused",
        "fastvec.decoders.from_files",
        "fastvec.decoders.quantized",
        "fastvec.decoders.detection",
        "fastvec.decoders.self_check",
        "fastvec.decoders.llama_layers",
        "fastvec.texts.tokenizer",
        "fastvec.texts.batching",
        "fastvec.training.objectives.losses",
        "fastvec.decoders.load",
        "fastvec.texts.packing",
        # what a corpus file is
        "fastvec.corpus.formats",
        "fastvec.corpus.text_lines",
        "fastvec.corpus.locations",
        "fastvec.corpus.columns",
        # what an output file is
        "fastvec.output.reader",
        "fastvec.output.ownership",
        "fastvec.output.journal",
        "fastvec.output.arrow_file",
        "fastvec.system.durable_files",
        "fastvec.output.vector_column",
    },
    {"fastvec_kernels"},
    {"fastvec.errors", "fastvec.report", "fastvec.system.pipeline"},
]
SHARED_FLOORS = {3, 5, 6}  # modules on these may import each other
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 350, 60


def floor_of(module: str) -> int | None:
    for floor, names in enumerate(FLOORS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return floor
    return None


def modules() -> dict[str, Path]:
    found = {}
    for base in (ROOT, ROOT / "kernels"):
        for path in base.glob("fastvec*/**/*.py"):
            if path.name != "__init__.py":
                found[".".join(path.relative_to(base).with_suffix("").parts)] = path
    return found


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_stands_on_a_floor() -> None:
    assert [module for module in modules() if floor_of(module) is None] == []


def test_every_name_on_a_floor_is_a_module() -> None:
    names = {name for floor in FLOORS for name in floor}
    assert names - modules().keys() == {"fastvec_kernels"}


def test_imports_go_down_only() -> None:
    wrong = []
    for module, path in modules().items():
        own = floor_of(module)
        for name in imports(path):
            other = floor_of(name)
            if own is None or other is None or module == name:
                continue
            if other < own or (other == own and own not in SHARED_FLOORS):
                wrong.append(f"{module} imports {name}")
    assert wrong == []


def test_no_module_imports_itself_through_others() -> None:
    found = modules()
    graph = {module: imports(path) & found.keys() - {module} for module, path in found.items()}
    assert set(TopologicalSorter(graph).static_order()) == found.keys()  # raises CycleError


def test_files_and_functions_are_small() -> None:
    large = []
    for path in [*modules().values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
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


def test_a_job_is_planned_without_torch() -> None:
    modules = "fastvec.embedding.job, fastvec.output.inspection, fastvec.training.job"
    script = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_every_kernel_has_a_test() -> None:
    kernels = {path.stem for path in (ROOT / "kernels/fastvec_kernels").glob("[!_]*.py")}
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests/kernels").glob("test_*.py")}
    assert kernels <= tests


def test_all_but_kernels_is_annotated() -> None:
    """mypy is told not to ask it of the kernels' package, whose kernels have signatures that are Triton's."""
    bare = []
    for path in (ROOT / "kernels/fastvec_kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and not any("jit" in ast.unparse(x) for x in node.decorator_list):
                given = [one for one in ast.walk(node.args) if isinstance(one, ast.arg)]
                whole = all(one.annotation or one.arg in ("self", "cls") for one in given)
                bare += [f"{path.name}: {node.name}"] * (not whole or node.returns is None)
    assert bare == []


def test_kernels_folder_is_no_package() -> None:
    assert not (ROOT / "kernels/__init__.py").exists()  # it would shadow Hugging Face's package of that name
