"""The search for the sizes of the kernels that are fastest on this GPU."""

import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax import lax

from deft_jax.attention.device import device_of, num_multiprocessors
from deft_jax.attention.hopper import attend, make_spec
from deft_jax.attention.kernel_inputs import prepare
from deft_jax.attention.spec import Logits
from deft_jax.attention.tuning.problem import Problem
from deft_jax.pallas_kernels.kernel_spec import SHARED_BYTES, KernelConfig, KernelSpec

UNIT_TOKENS = (16, 32)
BLOCK_TOKENS = (64, 128)
STAGES = (2, 3, 4, 5)

MAX_ERROR = 1e-2
"""Largest relative error of a config that may win; rounding stays well below."""

LOOP_CALLS = 50

Timer = Callable[[Callable[[], Any]], float]
"""From a call to the seconds it takes."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What came of one config.

    Attributes:
        config: the sizes that were measured.
        us: microseconds of a call, by the tree's name.
        error: largest relative error over the trees.
        failure: why the config cannot be used, None if it can.
    """

    config: KernelConfig
    us: dict[str, float] = dataclasses.field(default_factory=dict)
    error: float = 0.0
    failure: str | None = None

    @property
    def mean_us(self) -> float:
        """Geometric mean over the trees, so that each weighs the same."""
        return statistics.geometric_mean(self.us.values())


def problem_spec(problem: Problem, config: KernelConfig | None = None) -> KernelSpec:
    """Return the kernels' sizes for a problem on the device where its arrays lie."""
    plain = Logits.plain(problem.q.shape[-1])
    spec = dataclasses.replace(plain, window=problem.window)
    return make_spec(
        problem.q,
        problem.k_pages,
        spec,
        config=config or KernelConfig(),
        num_workers=num_multiprocessors(device_of(problem.q)),
    )


def candidates(spec: KernelSpec, *, quick: bool = False) -> list[KernelConfig]:
    """Return the configs that divide the pages of `spec` and fit the shared memory.

    Args:
        spec: sizes of the kernels; its config does not matter.
        quick: leave out all but the most stages of each block and unit.
    """
    fitting = []
    for unit, block in itertools.product(UNIT_TOKENS, BLOCK_TOKENS):
        if spec.page_size % unit:
            continue
        configs = [KernelConfig(unit, block, stages) for stages in STAGES]
        configs = [c for c in configs if _fits(spec, c)]
        fitting += configs[-1:] if quick else configs
    return fitting


def _fits(spec: KernelSpec, config: KernelConfig) -> bool:
    return dataclasses.replace(spec, config=config).shared_bytes <= SHARED_BYTES


def search(
    configs: Iterable[KernelConfig], measure: Callable[[KernelConfig], Measurement]
) -> Iterator[Measurement]:
    """Measure configs one by one; one that fails does not end the search."""
    for config in configs:
        try:
            measured = measure(config)
        # What compilers and drivers raise for sizes that they do not take.
        except (RuntimeError, ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            yield Measurement(config, failure=reason)
            continue
        # Not "above": NaN must not win.
        if not measured.error < MAX_ERROR:
            reason = f"relative error {measured.error:.1e}"
            measured = dataclasses.replace(measured, failure=reason)
        yield measured


def best(measurements: Iterable[Measurement]) -> Measurement | None:
    """Return the fastest one that can be used, None if there is none."""
    usable = [m for m in measurements if m.failure is None]
    return min(usable, key=lambda m: m.mean_us, default=None)


def measure(problem: Problem, config: KernelConfig, *, timer: Timer) -> Measurement:
    """Run the kernels with one config on every tree of a problem.

    Args:
        problem: trees and arrays to attend to.
        config: sizes of the kernels.
        timer: gives the seconds of a call, which runs the kernels LOOP_CALLS times.

    Raises:
        RuntimeError, ValueError, NotImplementedError: the kernels cannot be compiled or
            run with this config.
    """
    spec = problem_spec(problem, config)
    once = jax.jit(functools.partial(attend, spec))
    often = jax.jit(functools.partial(_attend_often, once))
    ready = jax.jit(lambda grouping: prepare(grouping, spec))
    us, error = {}, 0.0
    for name, tree in problem.trees.items():
        args = problem.q, problem.k_pages, problem.v_pages, ready(tree)
        wrong = problem.error(name, once(*args)[0])
        if not wrong < MAX_ERROR:
            return Measurement(config, error=wrong)
        error = max(error, wrong)
        us[name] = timer(functools.partial(often, *args)) / LOOP_CALLS * 1e6
    return Measurement(config, us, error)


def _attend_often(once, q, k_pages, v_pages, prepared):
    """Call LOOP_CALLS times, each on the last result, so that none is left out."""

    def call(_, q):
        return once(q, k_pages, v_pages, prepared)[0]

    return lax.fori_loop(0, LOOP_CALLS, call, q)


def wall_seconds(call: Callable[[], Any], *, repeats: int = 5) -> float:
    """Return the median wall time of `call` until its result is there, warmed up."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times)
