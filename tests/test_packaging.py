"""What the wheel holds, and that the lock names versions and nothing else."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Folder of the repository -> folder of the installation.
INSTALLED_AS = {
    "deft_jax": "deft_jax",
    "bench": "deft_jax/bench",
    "models": "deft_jax/models",
    "pallas_kernels": "deft_jax/pallas_kernels",
}
METADATA_FOLDER = f"deft_jax-{PYPROJECT['project']['version']}.dist-info"
BUILD = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZipFile]:
    """Build the wheel of a copy of the sources: a build writes into what it reads."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in INSTALLED_AS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    build = [sys.executable, "-c", BUILD]
    built = subprocess.run(build, cwd=copy, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    with ZipFile(copy / built.stdout.split()[-1]) as opened:
        yield opened


def source_files() -> set[str]:
    """Return the files of the packages, but notes and results, as installed."""
    return {
        f"{installed}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, installed in INSTALLED_AS.items()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
        if file.suffix != ".md" and file.parent != ROOT / "bench" / "results"
    }


def test_wheel_has_one_top_level_name(wheel: ZipFile):
    names = {name.split("/")[0] for name in wheel.namelist()}
    assert names == {"deft_jax", METADATA_FOLDER}


def test_wheel_holds_every_module_and_data_file(wheel: ZipFile):
    modules = {name for name in wheel.namelist() if name.startswith("deft_jax/")}
    assert modules == source_files()


def test_wheel_is_marked_as_typed(wheel: ZipFile):
    assert "deft_jax/py.typed" in wheel.namelist()


def test_wheel_keeps_the_version_and_ranges_of_the_project(wheel: ZipFile):
    text = wheel.read(f"{METADATA_FOLDER}/METADATA").decode()
    metadata = HeaderParser().parsestr(text)
    required = map(Requirement, metadata.get_all("Requires-Dist", []))
    runtime = {str(need) for need in required if need.marker is None}
    assert metadata["Version"] == PYPROJECT["project"]["version"]
    assert runtime == {
        str(Requirement(d)) for d in PYPROJECT["project"]["dependencies"]
    }


def test_wheel_carries_the_license(wheel: ZipFile):
    text = wheel.read(f"{METADATA_FOLDER}/licenses/LICENSE").decode()
    assert text == (ROOT / "LICENSE").read_text()


def test_lock_holds_exact_versions_alone():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


def test_pre_commit_runs_the_locked_ruff():
    locked = re.search(r"^ruff==(.*)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert locked is not None
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert "ruff-pre-commit\n    # The version that constraints.txt locks.\n" in hooks
    assert f"rev: v{locked.group(1)}\n" in hooks


def test_the_citation_names_the_version_of_the_project():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {PYPROJECT['project']['version']}\n" in citation


def test_every_sub_package_is_listed():
    folders = PYPROJECT["tool"]["setuptools"]["package-dir"]
    expected = {
        ".".join([package, *file.parent.relative_to(ROOT / folder).parts])
        for package, folder in {"deft_jax": "deft_jax", **folders}.items()
        for file in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(expected) == PYPROJECT["tool"]["setuptools"]["packages"]
