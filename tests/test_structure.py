"""Who may import whom; DESIGN: kernels know no trees, and trees know no models."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Folder of the repository -> the package that it is when installed.
PACKAGES = {
    "deft_jax": "deft_jax",
    "models": "deft_jax.models",
    "pallas_kernels": "deft_jax.pallas_kernels",
    "bench": "deft_jax.bench",
}


def modules(folder: str) -> list[Path]:
    """Return the Python files below a folder of the repository."""
    return sorted((ROOT / folder).rglob("*.py"))


def absolute(node: ast.ImportFrom, package: str) -> str:
    """Return the module that `from ... import` names, as seen inside `package`."""
    if not node.level:
        return node.module or ""
    parents = package.split(".")[: 1 - node.level or None]
    return ".".join([*parents, *filter(None, [node.module])])


def imported_names(folder: str, file: Path) -> Iterator[str]:
    """Yield the full dotted name of every module and attribute a file imports."""
    below = file.relative_to(ROOT / folder).parent.parts
    package = ".".join([PACKAGES[folder], *below])
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, package)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def importers(folder: str, forbidden: str) -> set[str]:
    """Return the files of a folder that import a module or what lies below it."""
    return {
        file.relative_to(ROOT).as_posix()
        for file in modules(folder)
        for name in imported_names(folder, file)
        if f"{name}.".startswith(f"{forbidden}.")
    }


@pytest.mark.parametrize("folder", PACKAGES)
def test_nothing_imports_torch(folder: str):
    assert importers(folder, "torch") == set()


def test_kernels_import_nothing_of_ours_but_kernels():
    names = {
        name
        for file in modules("pallas_kernels")
        for name in imported_names("pallas_kernels", file)
        if name.split(".")[0] == "deft_jax"
    }
    assert {n for n in names if not n.startswith("deft_jax.pallas_kernels.")} == set()


@pytest.mark.parametrize("package", ["deft_jax.models", "deft_jax.bench"])
def test_only_the_command_line_imports_models_and_benchmarks(package: str):
    files = importers("deft_jax", package)
    assert {file for file in files if not file.startswith("deft_jax/cli/")} == set()


@pytest.mark.parametrize("folder", ["deft_jax", "models", "bench"])
@pytest.mark.parametrize(
    "backend", ["jax.experimental.pallas", "jax.experimental.mosaic"]
)
def test_pallas_stays_in_the_kernels(folder: str, backend: str):
    # The profiler of Mosaic GPU is how kernels are timed.
    assert importers(folder, backend) - {"bench/gpu/timing.py"} == set()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from .config import A", "deft_jax.models.config.config.A"),
        ("from . import config", "deft_jax.models.config.config"),
        ("from ..tree import Tree", "deft_jax.tree.state.Tree"),
        ("from jax import numpy", "jax.numpy"),
    ],
)
def test_relative_imports_are_resolved(source: str, expected: str):
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.ImportFrom)
    module = absolute(node, "deft_jax.models")
    assert f"{module}.{node.names[0].name}" == expected
