"""Stages of shared memory that one warp fills and the computing warpgroups empty."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu


@dataclasses.dataclass(frozen=True)
class Ring:
    """Buffers with a barrier for "full" and one for "free" per stage.

    Attributes:
        buffer: [S, ...] shared memory.
        full: S barriers that copies arrive at.
        free: S barriers that every computing warpgroup arrives at.
        stages: `S`.
    """

    buffer: Any
    full: Any
    free: Any
    stages: int

    def slot(self, count):
        """Stage of the `count`-th block."""
        return lax.rem(count, jnp.int32(self.stages))

    def wait_free(self, count):
        """Wait until the stage of the `count`-th block is free; return it."""
        slot = self.slot(count)

        @pl.when(count >= self.stages)
        def _():
            plgpu.barrier_wait(self.free.at[slot])

        return slot

    def drain(self, count) -> None:
        """Wait until all of `count` blocks are consumed."""
        for i in range(self.stages):

            @pl.when(i < count)
            def _(i=i):
                plgpu.barrier_wait(self.free.at[self.slot(count - 1 - i)])

    def wait_full(self, slot) -> None:
        """Wait for the copies into a stage."""
        plgpu.barrier_wait(self.full.at[slot])

    def release(self, slot) -> None:
        """Lets the stage be overwritten."""
        plgpu.barrier_arrive(self.free.at[slot])

    def skip(self, slot) -> None:
        """Pass over a stage that this warpgroup does not need."""
        self.wait_full(slot)
        self.release(slot)
