"""Compiled programs in files, so that another process need not even trace them.

JAX's own cache is asked with the program as text, which takes as long to make as all
else of a warm start. These files are found by what the program follows from: the source
of this package, the versions of JAX, the processor, and the arguments' shapes.

XLA cannot write a program that it has read. So a program that is to be kept has a name
that no program in JAX's cache has: a file that is missing or damaged is written anew.
"""

import functools
import hashlib
import os
import platform
import re
import sys
import tempfile
import threading
import uuid
from collections.abc import Hashable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.stages import Compiled, Lowered

from deft_jax.engine.compilation_cache import (
    compilation_cache_folder,
    make_writable_folder,
    watch_compilations,
)

DIGEST_BYTES = hashlib.sha256().digest_size

_SETTINGS = ("x64", "matmul_precision", "prng", "platforms", "promotion", "debug")
"""Parts of the names of JAX's settings that change what is compiled."""


def kept_path(step: str, static: Hashable, arguments: Any) -> Path | None:
    """Return the file that a program is kept in, None if it cannot be.

    Only programs that follow from the source of this package are kept, and only those
    for processors: on GPUs tracing is not what a start waits for.

    Args:
        step: name of the program.
        static: static arguments; their representations say all that they are.
        arguments: pytree of arrays or shapes, the model the first of a tuple.
    """
    folder = compilation_cache_folder()
    parts = [arguments[0], *(static if isinstance(static, tuple) else (static,))]
    ours = all(
        isinstance(part, int) or type(part).__module__.startswith("deft_jax.")
        for part in parts
    )
    if folder is None or not ours or jax.default_backend() != "cpu":
        return None
    leaves, tree = jax.tree.flatten(arguments)
    shapes = [(x.shape, str(x.dtype)) for x in leaves]
    facts = (_surroundings(), step, repr(static), str(tree), shapes)
    # An object whose representation is its address says nothing of what it is.
    if re.search(r" at 0x[0-9a-f]+", repr(facts)):
        return None
    name = hashlib.sha256(repr(facts).encode()).hexdigest()
    return folder / f"deft-jax-{step}-{name}"


def can_keep(path: Path) -> bool:
    """Say whether a program can be written to the file that `kept_path` gave."""
    return make_writable_folder(path.parent)


def renamed(jitted: Any, path: Path, options: dict[str, Any]) -> Any:
    """Return a jitted step under a name that no other program has.

    Args:
        jitted: the step.
        path: file that `kept_path` gave.
        options: what `jax.jit` was given for the step.
    """
    step = functools.partial(jitted.__wrapped__)
    name = f"{path.name}_{uuid.uuid4().hex}"
    step.__name__ = re.sub(r"\W", "_", name)  # type: ignore[attr-defined]
    return jax.jit(step, **options)


def read_program(path: Path, arguments: tuple, result: Any) -> Compiled | None:
    """Read a program, None if there is none that can be used.

    Args:
        path: file that `kept_path` gave.
        arguments: what the program takes; the structure alone is used.
        result: what it returns, likewise.
    """
    try:
        kept = path.read_bytes()
    except OSError:
        return None
    digest, payload = kept[:DIGEST_BYTES], kept[DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        return None
    try:
        return serialize_executable.deserialize_and_load(
            payload, jax.tree.structure((arguments, {})), jax.tree.structure(result)
        )
    except Exception:  # Whatever it is, the program can be compiled.
        return None


def compile_to_keep(
    lowered: Lowered, path: Path, arguments: tuple, result: Any
) -> Compiled:
    """Compile a program and keep it; a folder that cannot be written is left.

    Args:
        lowered: the program, by `renamed`.
        path: file that `kept_path` gave.
        arguments: what the program takes; the structure alone is used.
        result: what it returns, likewise.
    """
    with watch_compilations() as compilations:
        program = lowered.compile()
    if threading.get_ident() not in compilations.threads:
        return program
    payload, taken, returned = serialize_executable.serialize(program)
    same = taken == jax.tree.structure((arguments, {}))
    if not same or returned != jax.tree.structure(result):
        return program
    with suppress(OSError):
        # Another process may write or read the same file: it appears at once.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            written = Path(folder, path.name)
            written.write_bytes(hashlib.sha256(payload).digest() + payload)
            os.replace(written, path)
    return program


@functools.cache
def _surroundings() -> str:
    """Return a digest of all that is the same for every program of a process."""
    digest = hashlib.sha256()
    for folder in _source_folders():
        for file in sorted(folder.rglob("*.py")):
            digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    settings = {
        name: str(value)
        for name, value in jax.config.values.items()
        if any(part in name for part in _SETTINGS)
    }
    facts = (
        (sys.version, jax.__version__, jax.devices()[0].client.platform_version),
        (len(jax.devices()), platform.machine(), _processor_flags()),
        (sorted(settings.items()), os.environ.get("XLA_FLAGS")),
    )
    digest.update(repr(facts).encode())
    return digest.hexdigest()


def _source_folders() -> list[Path]:
    """Return the folders of what is traced: this package, its models and kernels.

    In an editable installation the last two lie elsewhere.
    """
    specs = (
        find_spec(f"deft_jax{part}") for part in ("", ".models", ".pallas_kernels")
    )
    return [Path(spec.origin).parent for spec in specs if spec and spec.origin]


def _processor_flags() -> str:
    """Return the processor's model and instruction sets, where the kernel says them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    kinds = ("model name", "flags", "Features")
    return "".join(sorted({line for line in lines if line.startswith(kinds)}))
