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

    With 2 stages, blocks 0 1 2 3 go to the stages 0 1 0 1: block 2 waits until every
    computing warpgroup has released stage 0.

    Attributes:
        buffer: [stages, ...] shared memory.
        full: a barrier per stage that copies arrive at.
        free: a barrier per stage that every computing warpgroup arrives at.
        stages: number of buffers.
    """

    buffer: Any
    full: Any
    free: Any
    stages: int

    def slot(self, count):
        """Return the stage of block number `count`."""
        return lax.rem(count, jnp.int32(self.stages))

    def wait_free(self, count):
        """Wait until the stage of block number `count` is free; return it."""
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
        """Let the stage be overwritten."""
        plgpu.barrier_arrive(self.free.at[slot])

    def skip(self, slot) -> None:
        """Pass over a stage that this warpgroup does not need."""
        self.wait_full(slot)
        self.release(slot)
