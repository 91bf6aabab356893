import math
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import deft_jax
from deft_jax.engine.compilation_cache import (
    Compilations,
    compilation_cache_folder,
    enable_compilation_cache,
    watch_compilations,
)

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    for name in ("DEFT_JAX_CACHE", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_own_variable_comes_first(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    monkeypatch.setenv("DEFT_JAX_CACHE", str(tmp_path))
    assert compilation_cache_folder() == tmp_path


def test_empty_variable_keeps_nothing(monkeypatch):
    monkeypatch.setenv("DEFT_JAX_CACHE", "")
    assert compilation_cache_folder() is None


@pytest.mark.parametrize(
    ("platform", "variable", "value", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "/x", "/x/deft-jax/compiled"),
        ("linux", "HOME", "/h", "/h/.cache/deft-jax/compiled"),
        ("darwin", "HOME", "/h", "/h/Library/Caches/deft-jax/compiled"),
        ("win32", "LOCALAPPDATA", "/l", "/l/deft-jax/compiled"),
    ],
)
def test_folder_follows_the_platform(monkeypatch, platform, variable, value, expected):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv(variable, value)
    assert compilation_cache_folder() == Path(expected)


def test_everything_compiled_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("DEFT_JAX_CACHE", str(tmp_path / "deep" / "folder"))
    enable_compilation_cache()
    folder = str(tmp_path / "deep" / "folder")
    assert [getattr(jax.config, name) for name in OPTIONS] == [folder, 0, -1]


def test_variable_of_jax_wins(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/jax")
    monkeypatch.setenv("DEFT_JAX_CACHE", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before


def test_folder_that_cannot_be_made_is_done_without(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEFT_JAX_CACHE", str(tmp_path / "file" / "cache"))
    before = jax.config.jax_compilation_cache_dir
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before


def test_the_function_is_public():
    assert deft_jax.enable_compilation_cache is enable_compilation_cache


LIBRARY_USE = """
import dataclasses, jax, jax.numpy as jnp
jnp.ones(3) + 1  # JAX compiles before the cache is enabled.
import deft_jax
deft_jax.enable_compilation_cache()
from deft_jax.engine.engine import Engine
from deft_jax.models.config.shapes import SHAPES
from deft_jax.models.families.llama import Llama
from tests.support.tiny_model import AsciiTokenizer, CAPACITY, CONFIG
config = dataclasses.replace(CONFIG, num_layers=1)
engine = Engine(Llama.random(config, seed=1), AsciiTokenizer(), capacity=CAPACITY)
def tell(status):
    if status.phase == "compile":
        print(status.message)
for _ in range(2):
    engine.generate([5, 6], on_status=tell)
"""


SMALL_USE = """
import jax, deft_jax
deft_jax.enable_compilation_cache()
from deft_jax.engine.compilation_cache import watch_compilations
with watch_compilations() as compilations:
    jax.jit(lambda x: x * 21 + 4)(3.0)
print(compilations.kept)
"""


def test_a_library_call_compiles_once_per_machine_and_says_so(tmp_path):
    """The second process reads the programs that the first has kept."""

    def run() -> list[str]:
        environment = {
            "PATH": "",
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
            "DEFT_JAX_CACHE": str(tmp_path),
        }
        done = subprocess.run(
            [sys.executable, "-c", LIBRARY_USE],
            env=environment,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    preparing = ["preparing the prefill step", "preparing the decode step"]
    first = run()
    assert first[::2] == preparing
    for step, line in zip(("prefill", "decode"), first[1::2], strict=True):
        assert line.startswith(f"compiled the {step} step in ")
        assert line.endswith(" s; kept for next time")
    assert run() == preparing


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs such a folder")
def test_a_folder_that_cannot_be_written_keeps_nothing_and_says_nothing(tmp_path):
    """Nobody writes to this folder, not even root; JAX says that it keeps all."""
    (tmp_path / "file").write_text("")
    for folder in "/proc/self", str(tmp_path / "file"):
        environment = {"PATH": "", "JAX_PLATFORMS": "cpu", "DEFT_JAX_CACHE": folder}
        done = subprocess.run(
            [sys.executable, "-c", SMALL_USE],
            env=environment,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        assert (done.stdout, done.stderr) == ("False\n", "")


def test_jax_does_not_keep_what_its_folder_cannot_take(monkeypatch):
    """The folder may be the user's own, by JAX's variable."""
    before = jax.config.jax_compilation_cache_dir
    told = Compilations()
    try:
        for folder, kept in ("/proc/self", False), ("gs://bucket/folder", True):
            jax.config.update("jax_compilation_cache_dir", folder)
            told.on_event("/jax/compilation_cache/cache_misses")
            assert told.kept is kept
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_what_is_compiled_is_told_from_what_is_there():
    """Nothing is kept, however long a loaded machine takes to compile it."""
    double = jax.jit(lambda x: x * 21 + 4)
    shortest = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, shortest)
    try:
        jax.config.update(shortest, math.inf)
        with watch_compilations() as first:
            double(3.0)
        with watch_compilations() as second:
            double(4.0)
    finally:
        jax.config.update(shortest, before)
    assert first.seconds > 0 and not first.kept
    assert second.seconds == 0
