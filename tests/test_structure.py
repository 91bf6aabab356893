"""Who may import whom; DESIGN: kernels know no trees, and trees know no models."""

import ast
from pathlib import Path

import pytest

from scripts.structure import (
    ORDER,
    PACKAGES,
    ROOT,
    Structure,
    absolute_module,
    describe,
    hidden_imports,
    imported_names,
    parts_of,
    source_files,
    structure_of,
)

PARTS = [(folder, part) for folder in PACKAGES for part in ["", *parts_of(folder)]]
FILES = [file for folder in PACKAGES for file in source_files(folder)]
TOP_MODULES = 8


def importers(folder: str, forbidden: str) -> set[str]:
    """Return the files of a folder that import a module or what lies below it."""
    package = folder.split("/")[0]
    return {
        file.relative_to(ROOT).as_posix()
        for file in source_files(folder)
        for name in imported_names(package, file)
        if f"{name}.".startswith(f"{forbidden}.")
    }


def test_sub_packages_import_downwards():
    structure = structure_of("deft_jax")
    assert set(structure.rooms) == set(ORDER)
    assert structure.upward(ORDER) == []


@pytest.mark.parametrize(("folder", "part"), PARTS)
def test_no_circles(folder: str, part: str):
    structure = structure_of(folder, part)
    assert structure.circles() == [], describe(f"{folder}/{part}", structure)


def test_few_modules_at_the_top():
    assert len(structure_of("deft_jax").top_modules) <= TOP_MODULES


def test_nothing_is_imported_for_type_checkers_alone():
    hidden = [
        f"{file.relative_to(ROOT)}:{n}" for file in FILES for n in hidden_imports(file)
    ]
    assert hidden == []


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("deft_jax/results", "deft_jax.attention"),
        ("deft_jax/results", "deft_jax.pallas_kernels"),
        ("deft_jax/tree", "deft_jax.strategies"),
        ("deft_jax/tree", "deft_jax.pallas_kernels"),
        ("deft_jax/strategies", "deft_jax.runtime"),
        *[(folder, "torch") for folder in PACKAGES],
    ],
)
def test_what_a_package_does_not_know(folder: str, forbidden: str):
    assert importers(folder, forbidden) == set()


def test_kernels_import_nothing_of_ours_but_kernels():
    names = {
        name
        for file in source_files("pallas_kernels")
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
        ("from .config import A", "deft_jax.models.config.A"),
        ("from . import config", "deft_jax.models.config"),
        ("from ..tree import Tree", "deft_jax.tree.Tree"),
        ("from ..tree.state import Tree", "deft_jax.tree.state.Tree"),
        ("from jax import numpy", "jax.numpy"),
    ],
)
def test_relative_imports_are_resolved(source: str, expected: str):
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.ImportFrom)
    module = absolute_module(node, "deft_jax.models")
    assert f"{module}.{node.names[0].name}" == expected


def test_circles_and_arrows_upwards_are_found():
    arrows = {("a", "b"): ["a/x.py"], ("b", "c"): ["b/y.py"], ("c", "b"): ["c/z.py"]}
    structure = Structure({"a": 1, "b": 1, "c": 2}, arrows)
    assert structure.circles() == [("b", "c")]
    assert structure.floors() == {"a": 1, "b": 0, "c": 0}
    assert structure.upward(("c", "b", "a")) == ["c -> b in c/z.py"]
    assert structure.upward(("b", "a")) == ["b -> c in b/y.py", "c -> b in c/z.py"]
    assert "circle: b <-> c\n    b -> c in b/y.py" in describe("made up", structure)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import a\nif TYPE_CHECKING:\n    import b", [2]),
        ("if typing.TYPE_CHECKING:\n    import b", [1]),
        ("def f():\n    if not TYPE_CHECKING:\n        import b", [2]),
        ("if a:\n    import b", []),
    ],
)
def test_blocks_for_type_checkers_are_found(tmp_path: Path, source: str, lines):
    (tmp_path / "module.py").write_text(source)
    assert hidden_imports(tmp_path / "module.py") == lines
