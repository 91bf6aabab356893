"""Device times of kernels, from CUPTI."""

import collections
import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

EVICT_BYTES = 256 * 2**20
"""Read before a cold call: several times the L2 cache of an H100."""

Record = Callable[[Callable[[], Any]], list[tuple[str, float]]]
"""Runs a function and gives (name, milliseconds) of each kernel that it started, in
order. Kernels only: copies and fills by the driver are not counted."""


def record_kernels(run: Callable[[], Any]) -> list[tuple[str, float]]:
    """Record the kernels of a call on a CUDA device; this is a `Record`.

    Raises:
        RuntimeError: this jaxlib cannot use CUPTI.
    """
    from jax.experimental.mosaic.gpu import profiler

    # The public `profiler.measure` cannot tell the kernels of two calls apart.
    library = getattr(profiler, "mosaic_gpu_lib", None)
    if library is None:
        raise RuntimeError("kernel times need a jaxlib with CUDA, got one without")
    cupti = library._mosaic_gpu_ext
    cupti._cupti_init()
    try:
        jax.block_until_ready(run())
    finally:
        timings = cupti._cupti_get_timings(False)
    return timings


def l2_eviction(num_bytes: int = EVICT_BYTES) -> Callable[[], jax.Array]:
    """Return a call that reads so much that nothing else is left in the L2 cache."""
    buffer = jnp.ones(num_bytes // 4, jnp.float32)
    total = jax.jit(jnp.sum)
    return lambda: total(buffer)


@dataclasses.dataclass(frozen=True)
class KernelTimes:
    """Device times of one call.

    Attributes:
        total_us: median over the calls of the sum over the kernels.
        kernels_us: median by name of the sum over the kernels of that name.
    """

    total_us: float
    kernels_us: dict[str, float]


class KernelTimer:
    """Times the kernels of compiled calls, with and without a cold L2 cache."""

    def __init__(self, record: Record, evict: Callable[[], Any]):
        """Learn how many kernels the eviction itself starts.

        Args:
            record: `record_kernels`, or what stands in for it.
            evict: called before each cold call; `l2_eviction` makes it.
        """
        self._record = record
        self._evict = evict
        jax.block_until_ready(evict())
        self._evict_kernels = len(record(evict))

    def measure(
        self, call: Callable[[], Any], *, repeats: int, cold: bool
    ) -> KernelTimes:
        """Time a call after one to warm up.

        Args:
            call: starts the same kernels each time.
            repeats: calls that are timed.
            cold: whether the L2 cache is filled with other data before each call.

        Raises:
            RuntimeError: the calls started different kernels, or none.
        """
        jax.block_until_ready(call())

        def run():
            result = None
            for _ in range(repeats):
                if cold:
                    self._evict()
                result = call()
            return result

        skip = self._evict_kernels if cold else 0
        return _summarize(_split(self._record(run), repeats, skip))


def _split(timings: list[tuple[str, float]], repeats: int, skip: int):
    """Return the timings call by call, without the `skip` first of each."""
    each = len(timings) // repeats
    calls = [timings[i * each : (i + 1) * each][skip:] for i in range(repeats)]
    # Sorted: a graph may start kernels that do not wait for each other in any order.
    names = {tuple(sorted(name for name, _ in call)) for call in calls}
    if len(timings) % repeats or len(names) != 1 or names == {()}:
        raise RuntimeError(
            f"{repeats} calls must start the same kernels each, got {len(timings)} "
            f"kernels, {skip} of each call before it, of {len(names)} kinds of calls"
        )
    return calls


def _summarize(calls: list[list[tuple[str, float]]]) -> KernelTimes:
    totals, by_name = [], collections.defaultdict(list)
    for call in calls:
        kernels: dict[str, float] = collections.defaultdict(float)
        for name, ms in call:
            kernels[name] += ms * 1e3
        for name, us in kernels.items():
            by_name[name].append(us)
        totals.append(sum(kernels.values()))
    medians = {name: statistics.median(times) for name, times in by_name.items()}
    return KernelTimes(statistics.median(totals), medians)
