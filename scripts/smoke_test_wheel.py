"""Checks an installed deft-jax: run with `python -I` of its environment."""

import importlib
import os
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import distribution
from pathlib import Path

IMPORTS = (
    "deft_jax",
    "deft_jax.bench.attention.cases",
    "deft_jax.models",
    "deft_jax.pallas_kernels",
    "deft_jax.cli.main",
)


def check_top_level_names() -> None:
    """Check that the installation owns one import name: others have a `models`."""
    files = distribution("deft-jax").files or []
    names = {file.parts[0] for file in files if file.parts[0] != ".."}
    modules = {name for name in names if not name.endswith(".dist-info")}
    assert modules == {"deft_jax"}, f"expected deft_jax alone, got {sorted(modules)}"


def check_imports() -> None:
    """Check that every part imports from this environment, not from a checkout."""
    site = Path(sysconfig.get_paths()["purelib"])
    for name in IMPORTS:
        origin = Path(importlib.import_module(name).__file__ or "")
        assert origin.is_relative_to(site), f"{name} came from {origin}, not {site}"


def check_public_names() -> None:
    """Check that every name of the shipped stub can be imported."""
    package = importlib.import_module("deft_jax")
    assert "Engine" in package.__all__, f"got {package.__all__}"
    for name in package.__all__:
        getattr(package, name)


def check_command_line() -> None:
    """Check that `deft-jax --help` answers."""
    command = Path(sysconfig.get_path("scripts")) / "deft-jax"
    shown = subprocess.run([command, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "generate" in shown.stdout, f"--help names no generate: {shown.stdout}"


if __name__ == "__main__":
    os.chdir(tempfile.gettempdir())
    check_top_level_names()
    check_imports()
    check_public_names()
    check_command_line()
    print(f"wheel works under Python {sys.version.split()[0]}")
