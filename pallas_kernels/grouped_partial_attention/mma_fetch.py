"""Copies of KV for the portable kernel, some blocks ahead of the arithmetic."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from ..kernel_spec import KernelSpec
from . import work

I32 = jnp.int32


class Cursor(NamedTuple):
    """The next block to copy, while `left` is above 0.

    Attributes:
        head: KV head, times chunks of its query heads.
        index: number of the tile.
        tile: fields of the tile.
        position: position of the block in the tile.
        left: positions of the share that are not copied yet.
        count: blocks copied so far.
    """

    head: I32
    index: I32
    tile: work.Tile
    position: I32
    left: I32
    count: I32


@dataclasses.dataclass(frozen=True)
class Fetch:
    """Fills a ring of stages; all four warps copy, and compute in between.

    Attributes:
        spec: what the kernel is compiled for.
        worker: number of this block of threads.
        worker_ref: [W, 16 + units of a block] int32, shares of the workers.
        tile_ref: [T, 8] int32, units of the tiles by class.
        unit_ref: [T * M * P // U] int32, units of the tiles.
        pages: two of [M, K, P // U, U, D], keys and values.
        rings: two of [stages, block, D] shared memory.
        full: barriers of the stages for bulk copies; None before Hopper, which has
            none and waits for groups of copies.
    """

    spec: KernelSpec
    worker: Any
    worker_ref: Any
    tile_ref: Any
    unit_ref: Any
    pages: tuple
    rings: tuple
    full: Any

    def start(self) -> Cursor:
        """Copy all but one of the stages' blocks; return what comes next."""
        head, index, position, left, *_ = work.Share.read(self.worker_ref, self.worker)
        tile = work.Tile.read(self.worker_ref, self.worker, work.SHARE_FIELDS)
        cursor = self._settle(Cursor(head, index, tile, position, left, I32(0)))
        for _ in range(self.spec.config.stages - 1):
            cursor = self.next(cursor)
        return cursor

    def next(self, cursor: Cursor) -> Cursor:
        """Copy the next block of the share, if there is one, and step on."""
        busy = cursor.left > 0
        pl.when(busy)(lambda: self._copy(cursor))
        step = jnp.where(busy, I32(1), I32(0))
        return self._settle(
            cursor._replace(
                position=cursor.position + step,
                left=cursor.left - step,
                count=cursor.count + step,
            )
        )

    def wait(self, count, copied):
        """Return the stage of block `count` once it is there; `copied` have begun."""
        stages = self.spec.config.stages
        slot = lax.rem(count, I32(stages))
        if self.full is not None:
            plgpu.barrier_wait(self.full.at[slot])
            return slot
        copies = len(self.pages) * self.spec.units_per_block
        steady = copied - count == stages

        @pl.when(steady)
        def _():
            plgpu.wait_gmem_to_smem(copies * (stages - 1))

        @pl.when(jnp.logical_not(steady))
        def _():
            plgpu.wait_gmem_to_smem(0)

        return slot

    def release(self) -> None:
        """Order the reads of a stage before the bulk copies that overwrite it."""
        if self.full is not None:
            plgpu.commit_smem()

    def units(self, tile: work.Tile, block) -> list[tuple]:
        """Return the units of a block, each with true if the tile's list holds it.

        The blocks of both classes are one line of units. Past its end the last one
        repeats: of the units 3 7 9, the second block of 2 is 9 (true) and 9 (false).
        """
        per_block = self.spec.units_per_block
        begin = tile.masked + (block - tile.whole) * per_block
        last = tile.both_end - 1
        return [
            (self.unit_ref[jnp.minimum(begin + i, last)], begin + i <= last)
            for i in range(per_block)
        ]

    def _copy(self, cursor: Cursor) -> None:
        spec = self.spec
        slot = lax.rem(cursor.count, I32(spec.config.stages))
        head = lax.div(cursor.head, I32(spec.head_chunks))
        size, per_page = spec.config.unit_tokens, I32(spec.units_per_page)
        units = [unit for unit, _ in self.units(cursor.tile, cursor.position)]
        for pages, ring in zip(self.pages, self.rings, strict=True):
            for i, unit in enumerate(units):
                page, part = lax.div(unit, per_page), lax.rem(unit, per_page)
                self._move(
                    pages.at[page, head, part],
                    ring.at[slot, pl.ds(i * size, size)],
                    slot,
                )

    def _move(self, source, target, slot) -> None:
        if self.full is not None:
            plgpu.copy_gmem_to_smem(source, target, self.full.at[slot])
        else:
            in_bounds = plgpu.OOBFillMode.PROMISE_IN_BOUNDS
            plgpu.copy_gmem_to_smem(source, target, oob_mode=in_bounds)

    def _settle(self, cursor: Cursor) -> Cursor:
        """Return the cursor past tiles that ended and those that see nothing."""

        def between(cursor: Cursor):
            return (cursor.left > 0) & (cursor.position >= cursor.tile.blocks)

        def next_tile(cursor: Cursor) -> Cursor:
            wraps = cursor.index + 1 == self.spec.num_tiles
            index = jnp.where(wraps, 0, cursor.index + 1)
            empty = cursor.tile.blocks == 0
            return cursor._replace(
                head=jnp.where(wraps, cursor.head + 1, cursor.head),
                index=index,
                tile=work.Tile.read(self.tile_ref, index),
                position=I32(0),
                left=jnp.where(empty, cursor.left - 1, cursor.left),
            )

        return lax.while_loop(between, next_tile, cursor)
