"""A process may run under a number that no user has, and without HOME."""

import pwd
from pathlib import Path

import pytest

from deft_jax.engine.compilation_cache import compilation_cache_folder
from deft_jax.errors import DeftError
from deft_jax.models.checkpoints.checkpoint import open_checkpoint


@pytest.fixture(autouse=True)
def no_home(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "DEFT_JAX_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path.home()


def test_nothing_is_kept(monkeypatch):
    assert compilation_cache_folder() is None
    monkeypatch.setenv("DEFT_JAX_CACHE", "~nosuchuser/cache")
    assert compilation_cache_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("DEFT_JAX_CACHE")
    assert compilation_cache_folder() == Path("/x/deft-jax/compiled")


@pytest.mark.parametrize("name", ["~/model.gguf", "~nosuchuser/x"])
def test_model_in_no_home_is_unknown(name):
    with pytest.raises(DeftError, match="no such model"):
        open_checkpoint(name)
