import sys
from pathlib import Path

import jax
import pytest

from deft_jax.engine.compilation_cache import (
    compilation_cache_folder,
    enable_compilation_cache,
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
