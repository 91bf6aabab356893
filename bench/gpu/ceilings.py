"""What the device can do at best: reads of memory, and matrix products."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from .timing import KernelTimer

MIB = 2**20
READ_BYTES = 2048 * MIB
COLD_READS_MIB = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
MATRIX_SIZE = 8192
ROW = 8192

READ_FORMS = {
    "sum": lambda x: jnp.sum(x, dtype=jnp.float32),
    "max": jnp.max,
    "row_sums": lambda x: jnp.sum(x.reshape(-1, ROW), axis=1, dtype=jnp.float32),
}
"""Reductions that read a buffer once; the best one counts."""


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """Rates of the device.

    Attributes:
        read_gbs: bytes of a large bfloat16 buffer over the time to reduce it.
        read_form: the reduction that was the fastest, one of READ_FORMS.
        matrix_tflops: rate of a square bfloat16 product.
        cold_read_us: by size ("4MiB"), the time to reduce a buffer that is not in the
            L2 cache.
    """

    read_gbs: float
    read_form: str
    matrix_tflops: float
    cold_read_us: dict[str, float]

    def roofline_us(self, num_bytes: int, flops: int) -> float:
        """Return the least time to read bytes and compute on them meanwhile."""
        return max(num_bytes / self.read_gbs / 1e3, flops / self.matrix_tflops / 1e6)


def measure_ceilings(
    timer: KernelTimer,
    repeats: int,
    *,
    read_bytes: int = READ_BYTES,
    cold_reads_mib: Sequence[int] = COLD_READS_MIB,
    matrix_size: int = MATRIX_SIZE,
) -> Ceilings:
    """Time plain XLA reductions and one product; medians of `repeats` calls."""
    reads = _read_us(timer, repeats, read_bytes)
    form = min(reads, key=lambda name: reads[name])
    cold = {
        f"{mib}MiB": round(min(_read_us(timer, repeats, mib * MIB).values()), 2)
        for mib in cold_reads_mib
    }
    return Ceilings(
        read_gbs=round(read_bytes / reads[form] / 1e3, 1),
        read_form=form,
        matrix_tflops=round(_matrix_tflops(timer, repeats, matrix_size), 1),
        cold_read_us=cold,
    )


def _read_us(timer: KernelTimer, repeats: int, num_bytes: int) -> dict[str, float]:
    """Time of each of READ_FORMS over a buffer that is not in the L2 cache."""
    buffer = jnp.ones(num_bytes // 2, jnp.bfloat16)
    times = {}
    for name, form in READ_FORMS.items():
        read = jax.jit(form)
        call = timer.measure(lambda read=read: read(buffer), repeats=repeats, cold=True)
        times[name] = call.total_us
    return times


def _matrix_tflops(timer: KernelTimer, repeats: int, size: int) -> float:
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in keys)
    dot = jax.jit(jnp.dot)
    call = timer.measure(lambda: dot(a, b), repeats=repeats, cold=False)
    return 2 * size**3 / call.total_us / 1e6
