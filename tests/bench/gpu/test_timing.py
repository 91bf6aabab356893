"""Kernel times and ceilings, with stand-ins for CUPTI."""

import pytest

from deft_jax.bench.gpu.ceilings import Ceilings, measure_ceilings
from deft_jax.bench.gpu.timing import KernelTimer, l2_eviction
from tests.support.bench.steady_timer import REPEATS, steady_timer

Kernels = list[tuple[str, float]]


class Device:
    """A `Record`, with calls that add the kernels that they would have started."""

    def __init__(self):
        self.log: Kernels = []

    def __call__(self, run) -> Kernels:
        self.log.clear()
        run()
        return list(self.log)

    def evict(self) -> None:
        self.log.extend([("reduce", 100.0), ("reduce_rest", 50.0)])

    def call(self, *timings: Kernels):
        """Return a call that starts the kernels of one of `timings` after the other.

        The first ones are started twice: the timer warms up.
        """
        state = iter((timings[0], *timings))
        return lambda: self.log.extend(next(state))


@pytest.mark.parametrize("cold", [False, True])
def test_the_evictions_kernels_are_not_counted(cold: bool):
    device = Device()
    call = device.call(
        [("a", 1e-3), ("b", 2e-3), ("a", 3e-3)],
        [("a", 2e-3), ("a", 9e-3), ("b", 2e-3)],
        [("a", 3e-3), ("b", 5e-3), ("a", 4e-3)],
    )
    times = KernelTimer(device, device.evict).measure(call, repeats=3, cold=cold)
    assert times.total_us == pytest.approx(12.0)
    assert times.kernels_us == pytest.approx({"a": 7.0, "b": 2.0})


@pytest.mark.parametrize(
    "timings",
    [
        ([("a", 1.0)], [("b", 1.0)]),
        ([("a", 1.0)], [("a", 1.0), ("a", 1.0)]),
        ([], []),
    ],
    ids=["other", "more", "none"],
)
def test_calls_that_differ_are_refused(timings: tuple[Kernels, ...]):
    device = Device()
    timer = KernelTimer(device, device.evict)
    with pytest.raises(RuntimeError, match="2 calls must start the same kernels"):
        timer.measure(device.call(*timings), repeats=2, cold=True)


def test_the_eviction_reads_its_buffer():
    assert l2_eviction(num_bytes=4096)() == 1024


def test_ceilings_follow_from_the_times():
    ceilings = measure_ceilings(
        steady_timer(("reduce", 2e-3)),
        REPEATS,
        read_bytes=2**16,
        cold_reads_mib=[1, 2],
        matrix_size=32,
    )
    assert ceilings.read_gbs == round(2**16 / 2e-6 / 1e9, 1)
    assert ceilings.matrix_tflops == round(2 * 32**3 / 2e-6 / 1e12, 1)
    assert ceilings.cold_read_us == {"1MiB": 2.0, "2MiB": 2.0}


@pytest.mark.parametrize(
    ("num_bytes", "flops", "us"),
    [
        (3_000_000, 600_000_000, 1.0),
        (6_000_000, 600_000_000, 2.0),
        (3_000_000, 1_800_000_000, 3.0),
    ],
)
def test_the_roofline_is_the_slower_of_memory_and_products(num_bytes, flops, us):
    ceilings = Ceilings(
        read_gbs=3000.0, read_form="sum", matrix_tflops=600.0, cold_read_us={}
    )
    assert ceilings.roofline_us(num_bytes, flops) == pytest.approx(us)
