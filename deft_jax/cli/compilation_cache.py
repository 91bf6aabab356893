"""Where compiled programs are kept for the next start of the command."""

import os
import sys
from pathlib import Path

VARIABLE = "DEFT_JAX_CACHE"
"""Environment variable with the folder; empty keeps nothing."""


def compilation_cache_folder() -> Path | None:
    """Return the folder for compiled programs, `None` to keep nothing.

    It is the value of `DEFT_JAX_CACHE` or lies in the user's cache folder.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        return Path(chosen).expanduser() if chosen else None
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library/Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "deft-jax" / "compiled"


def enable_compilation_cache() -> None:
    """Make JAX keep every compiled program, however small.

    JAX's own `JAX_COMPILATION_CACHE_DIR` wins where it is set. A folder that cannot
    be written costs the time to compile and nothing else.
    """
    folder = compilation_cache_folder()
    if folder is None or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
