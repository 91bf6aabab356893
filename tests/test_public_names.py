"""The names of `deft_jax`: listed in one place, imported when they are used."""

import ast
import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import deft_jax

STUB = ast.parse(Path(deft_jax.__file__).with_suffix(".pyi").read_text())
IMPORTED = {
    alias.name: node.module
    for node in STUB.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
HEAVY = ("jax", "numpy", "flax", "rich", "jinja2", "tokenizers", "huggingface_hub")


def stub_names() -> list[str]:
    """Return the `__all__` that the stub spells out."""
    (names,) = [n.value for n in STUB.body if isinstance(n, ast.Assign)]
    return ast.literal_eval(names)


def loaded_by(code: str) -> list[str]:
    """Return which heavy packages a fresh process has loaded behind `code`."""
    report = f"import sys; print([n for n in {HEAVY} if n in sys.modules])"
    command = [sys.executable, "-c", f"{code}\n{report}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    return ast.literal_eval(shown.stdout.splitlines()[-1])


def test_stub_lists_what_it_imports():
    assert stub_names() == sorted(IMPORTED, key=lambda n: (not n.isupper(), n))
    assert sorted(stub_names()) == sorted(deft_jax.__all__)


@pytest.mark.parametrize("name", IMPORTED)
def test_every_name_is_that_of_its_module(name: str):
    module = importlib.import_module(f"deft_jax.{IMPORTED[name]}")
    assert getattr(deft_jax, name) is getattr(module, name)
    assert name in dir(deft_jax)


def test_star_import_binds_every_name():
    names: dict = {}
    exec("from deft_jax import *", names)
    assert set(IMPORTED) <= set(names)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(deft_jax, "no_such_name")  # noqa: B009  (type checkers know it)
    with pytest.raises(ImportError, match="no_such_name"):
        exec("from deft_jax import no_such_name")


def test_sub_packages_are_imported_by_name():
    code = "import deft_jax.attention; assert deft_jax.attention.__doc__"
    assert loaded_by(code) == []


def test_objects_can_be_pickled():
    sampling = deft_jax.Sampling(seed=3)
    assert pickle.loads(pickle.dumps(sampling)) == sampling
    assert pickle.loads(pickle.dumps(deft_jax.Engine)) is deft_jax.Engine


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import deft_jax; dir(deft_jax)") == []
    assert "jax" in loaded_by("from deft_jax import Tree")


@pytest.mark.parametrize(
    "arguments", ["--help", "--version", "generate --help", "info --help"]
)
def test_help_loads_nothing_heavy(arguments: str):
    code = (
        "from deft_jax.cli.main import main\n"
        f"try: main({arguments.split()})\n"
        "except SystemExit: pass"
    )
    assert loaded_by(code) == []
