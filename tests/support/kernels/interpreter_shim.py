"""What the Mosaic GPU interpreter lacks for the kernels, made of what it has.

It runs neither wgmma with an operand in registers nor `run_state` of an accumulator.
Here an accumulator is a value and wgmma an ordinary product; reads of shared memory
stay visible to the race detector. Blocks of threads run one after another, so races
between blocks are not seen; nor does the detector know of the flags by which one block
waits for another's partial results, so reads of global memory are not checked. Nothing
here knows what the hardware or the lowering refuses.
"""

import contextlib
import io
from collections.abc import Iterator

import jax.numpy as jnp
import pytest
from jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call import (
    reset_gpu_interpret_mode_state,
)
from jax._src.pallas.mosaic_gpu.interpret.race_detection_state import (
    GPURaceDetectionState,
)
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from deft_jax.pallas_kernels.grouped_partial_attention import hopper_consumer

RACE = "RACE DETECTED"
GLOBAL_MEMORY = 0


class Accumulator:
    """Stands in for `ACC`: the value that products are added to."""

    def __init__(self, shape: tuple[int, int], dtype=jnp.float32):
        """Make an accumulator of zeros."""
        self.value = jnp.zeros(shape, dtype)

    @classmethod
    def init(cls, value) -> "Accumulator":
        """Return an accumulator that begins with a value."""
        accumulator = cls(value.shape, value.dtype)
        accumulator.value = value
        return accumulator

    def __getitem__(self, index):
        """Return elements of the value."""
        return self.value[index]


def wgmma(accumulator: Accumulator, a, b) -> None:
    """Add `a @ b`, both arrays or refs.

    The hardware reads shared memory the way copies do, hence the commit after what
    the interpreter takes for ordinary reads.
    """
    left, right = a[...], b[...]
    plgpu.commit_smem()
    dtype = accumulator.value.dtype
    accumulator.value += jnp.dot(left, right, preferred_element_type=dtype)


def run_scoped(body, *types, **options):
    """Run `body` with its accumulators, or as Pallas does if there are none."""
    if any(isinstance(x, Accumulator) for x in types):
        return body(*types)
    return _pallas_run_scoped(body, *types, **options)


def run_state(body):
    """Return `body` as a function from the first accumulator to the last."""

    def run(accumulator: Accumulator):
        body(accumulator)
        return accumulator.value

    return run


def check_read(state, thread, clock, buffer_key, *args, **options):
    """Check as the detector does, but shared memory only."""
    if buffer_key.memory_space_id != GLOBAL_MEMORY:
        _pallas_check_read(state, thread, clock, buffer_key, *args, **options)


_pallas_run_scoped = pl.run_scoped
_pallas_check_read = GPURaceDetectionState.check_read


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-ins where kernels look them up."""
    monkeypatch.setattr(hopper_consumer, "ACC", Accumulator)
    monkeypatch.setattr(plgpu, "wgmma", wgmma)
    monkeypatch.setattr(pl, "run_scoped", run_scoped)
    monkeypatch.setattr(pl, "run_state", run_state)
    monkeypatch.setattr(GPURaceDetectionState, "check_read", check_read)


@contextlib.contextmanager
def races_raise() -> Iterator[None]:
    """Raise a RuntimeError for races, which JAX 0.11 only prints.

    Afterwards the interpreter is fit for use again, whatever happened.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        reset_gpu_interpret_mode_state()
    if RACE in printed.getvalue():
        raise RuntimeError(printed.getvalue())
