"""One strict JAX runtime for the whole suite and for the processes it starts."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

from deft_jax.engine import widths

pytest_plugins = ["tests.support.fixtures_smollm2"]

STRICT_RUNTIME = {
    "jax_numpy_rank_promotion": "raise",
    "jax_numpy_dtype_promotion": "strict",
}
# Compiled programs are kept between runs. Tracing is not cached, so that assertions
# on the number of traces hold with and without it.
COMPILATION_CACHE = {
    "jax_compilation_cache_dir": str(Path(__file__).parents[1] / ".cache" / "jax"),
    "jax_persistent_cache_min_compile_time_secs": 0.2,
}

MANY_MAPPINGS = 25_000

hypothesis.settings.register_profile("local", deadline=None, max_examples=30)
hypothesis.settings.register_profile(
    "ci", deadline=None, max_examples=20, derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_configure(config: pytest.Config) -> None:
    """Set JAX up before any backend starts, on the CPU unless `-m gpu` is given."""
    options = STRICT_RUNTIME | COMPILATION_CACHE
    if config.option.markexpr != "gpu":
        options |= {"jax_platforms": "cpu"}
    for name, value in options.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    if config.option.markexpr not in ("gpu", "cuda_compile"):
        # Compiling is what tests of tiny networks take longest for, not running; the
        # processes that they start run real ones.
        jax.config.update("jax_disable_most_optimizations", True)
    # One program per capacity, since compiling is what tests take longest for; tests of
    # other widths set their own.
    widths.ROWS = widths.TOKENS = ()


@pytest.fixture(autouse=True, scope="module")
def _few_programs() -> Iterator[None]:
    """Drop compiled programs before their mappings of memory run out.

    Every program on a CPU has some, and a process may have 65 530; LLVM crashes then.
    """
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and len(mappings.read_text().splitlines()) > MANY_MAPPINGS:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def _promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lifts the strict promotion where a test carries `permissive_promotion`."""
    if request.node.get_closest_marker("permissive_promotion") is None:
        yield
        return
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield
