"""Where compiled programs are kept for the next process, and which were compiled."""

import math
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache as jax_cache

VARIABLE = "DEFT_JAX_CACHE"
"""Environment variable with the folder; empty keeps nothing."""

_HIT = "/jax/compilation_cache/cache_hits"
_KEPT = "/jax/compilation_cache/cache_misses"  # Recorded when an entry is written.
_COMPILED = "/jax/core/compile/backend_compile_duration"  # Also after a hit.


def compilation_cache_folder() -> Path | None:
    """Return the folder for compiled programs, `None` to keep nothing.

    It is the value of `DEFT_JAX_CACHE` or lies in the user's cache folder, if there is
    a user: a process may run under a number that has no home.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen is None:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
        elif sys.platform == "darwin":
            base = "~/Library/Caches"
        else:
            base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        chosen = os.path.join(base, "deft-jax", "compiled")
    # Unlike `Path.expanduser`, it leaves "~" where there is no home.
    folder = os.path.expanduser(chosen)
    return None if not folder or folder.startswith("~") else Path(folder)


def enable_compilation_cache() -> None:
    """Make JAX keep every program it compiles, and use those kept by other processes.

    The command line does so; a program that uses the library calls this once, before
    its first `Engine.generate`. It changes JAX's settings for the whole process. The
    folder is that of `compilation_cache_folder`, unless JAX's own
    `JAX_COMPILATION_CACHE_DIR` is set, which wins. A folder that cannot be written
    costs the time to compile and nothing else.
    """
    folder = compilation_cache_folder()
    if folder is None or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    is_writable = make_writable_folder(folder)
    if not os.path.isdir(folder):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX warns of every program that it cannot write: it must not try.
    seconds = 0 if is_writable else math.inf
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # JAX decides about its cache when it first compiles, which may have been before.
    jax_cache.reset_cache()


def make_writable_folder(folder: Path) -> bool:
    """Make a folder if there is none; return whether files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return _is_writable(folder)


def _is_writable(folder: str | Path) -> bool:
    """Say whether a file can be written to a folder, by writing one without a name."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@dataclass
class Compilations:
    """What was compiled while `watch_compilations` listened.

    Attributes:
        seconds: time that compiling took; 0 if every program was there or was read
            from a cache.
        kept: true if a program was written to the cache of compiled programs.
        threads: those that compiled a program, which they did not read from a cache.
    """

    seconds: float = 0.0
    kept: bool = False
    threads: set[int] = field(default_factory=set)
    _reading: set[int] = field(default_factory=set)

    def on_event(self, event: str, **_: str | int) -> None:
        """Note what JAX says before it says, on the same thread, that it is ready."""
        if event == _HIT:
            self._reading.add(threading.get_ident())
        self.kept |= event == _KEPT and _is_cache_writable()

    def on_duration(self, event: str, duration_secs: float, **_: str | int) -> None:
        """Count the program that is ready, unless it was read from a cache."""
        if event == _COMPILED:
            thread = threading.get_ident()
            if thread not in self._reading:
                self.seconds += duration_secs
                self.threads.add(thread)
            self._reading.discard(thread)


def _is_cache_writable() -> bool:
    """Say whether JAX's cache can be written, as far as a folder shows it.

    JAX announces that it keeps a program before it tries to. A cache at a URL is
    taken to be writable.
    """
    folder = str(jax.config.jax_compilation_cache_dir or "")
    return "://" in folder or _is_writable(folder)


@contextmanager
def watch_compilations() -> Iterator[Compilations]:
    """Listen to what JAX compiles, on any thread, inside the context."""
    compilations = Compilations()
    jax.monitoring.register_event_listener(compilations.on_event)
    jax.monitoring.register_event_duration_secs_listener(compilations.on_duration)
    try:
        yield compilations
    finally:
        jax.monitoring.unregister_event_listener(compilations.on_event)
        jax.monitoring.unregister_event_duration_listener(compilations.on_duration)
