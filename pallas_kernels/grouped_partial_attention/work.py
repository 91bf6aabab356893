"""Walks a worker's share of a schedule, the same way in every warp that needs it.

The arrays are those of `deft_jax.schedule.Schedule`. All values here are scalars of the
kernel.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from deft_jax.pallas_kernels.kernel_spec import KernelSpec

I32 = jnp.int32
SHARE_FIELDS = 8


class Tile(NamedTuple):
    """The units of a tile by class: indices in the unit list, then counts of blocks."""

    masked: I32
    both_end: I32
    first_end: I32
    second_end: I32
    whole: I32
    both: I32
    first: I32
    second: I32

    @property
    def blocks(self):
        """Blocks of the tile."""
        return self.whole + self.both + self.first + self.second


class Piece(NamedTuple):
    """Positions `begin:stop` of a tile, which fall into one worker's share."""

    head: I32
    index: I32
    tile: Tile
    begin: I32
    stop: I32

    @property
    def split(self):
        """Where the blocks that need no mask end."""
        return jnp.clip(self.tile.whole, self.begin, self.stop)

    @property
    def last(self):
        """Where the blocks end; a tile that sees nothing has a position without one."""
        return jnp.minimum(self.stop, self.tile.blocks)


def for_each_piece(
    spec: KernelSpec, worker_ref, tile_ref, worker, body: Callable, carry
):
    """Runs `carry = body(piece, carry)` for each piece of a share, in order."""
    head, index, begin, left, count = (worker_ref[worker, i] for i in range(5))
    fields = range(len(Tile._fields))
    tile = Tile(*(worker_ref[worker, SHARE_FIELDS + i] for i in fields))

    def step(_, state):
        head, index, begin, left, tile, carry = state
        stop = jnp.minimum(begin + left, jnp.maximum(tile.blocks, 1))
        carry = body(Piece(head, index, tile, begin, stop), carry)
        wraps = index + 1 == spec.num_tiles
        index = jnp.where(wraps, 0, index + 1)
        head = jnp.where(wraps, head + 1, head)
        tile = Tile(*(tile_ref[index, i] for i in fields))
        return head, index, I32(0), left - (stop - begin), tile, carry

    return lax.fori_loop(0, count, step, (head, index, begin, left, tile, carry))[-1]


def whole_units(spec: KernelSpec, tile: Tile, block):
    """Index of the first unit of a block that needs no mask."""
    return tile.masked + (block - tile.whole) * spec.units_per_block


def masked_units(spec: KernelSpec, tile: Tile, block):
    """First unit of a block under a mask, and the end of the units of its class."""
    block = block - tile.whole
    in_both = block < tile.both
    half, nth = owner(tile, block - tile.both)
    begin = jnp.where(half == 0, tile.both_end, tile.first_end)
    end = jnp.where(half == 0, tile.first_end, tile.second_end)
    begin = jnp.where(in_both, tile.masked, begin)
    end = jnp.where(in_both, tile.both_end, end)
    return begin + jnp.where(in_both, block, nth) * spec.units_per_block, end


def owner(tile: Tile, block):
    """Half that sees a block which only one sees, and its number within the half.

    The blocks of the two halves take turns, so that both warpgroups have work.
    """
    shared = jnp.minimum(tile.first, tile.second)
    turns = block < 2 * shared
    longer = jnp.where(tile.first > tile.second, 0, 1)
    half = jnp.where(turns, lax.rem(block, I32(2)), longer)
    return half, jnp.where(turns, lax.div(block, I32(2)), block - shared)
