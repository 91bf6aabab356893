"""Walks a worker's share of a schedule, the same way in every warp that needs it.

The arrays are those of `deft_jax.attention.schedule.Schedule`. All values here are
scalars of the kernel. The blocks of all KV heads' tiles are one line; a *share* is the
run of it that one worker gets, a *piece* what of a share lies in one tile. With 2 heads
and 2 tiles of 3 and 2 blocks, three workers get 4, 3 and 3 positions:

    head       0 0 0 0 0 1 1 1 1 1
    tile       0 0 0 1 1 0 0 0 1 1
    position   0 1 2 0 1 0 1 2 0 1     of the block in its tile
    worker     0 0 0 0 1 1 1 2 2 2

    worker 0   pieces 0:3 of tile 0 (1 position left) and 0:1 of tile 1 (0 left)
    worker 1   pieces 1:2 of tile 1 (2 left) and 0:2 of head 1's tile 0 (0 left)
    worker 2   pieces 2:3 of head 1's tile 0 (2 left) and 0:2 of its tile 1 (0 left)

Workers 0 and 1 each begin a tile that the next worker ends, and merge its result.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from ..kernel_spec import KernelSpec

I32 = jnp.int32
SHARE_FIELDS = 8
TILE_FIELDS = 8
FIRST_UNITS = SHARE_FIELDS + TILE_FIELDS
"""Where a worker's row has the units of its first block."""


class Share(NamedTuple):
    """The fields of a worker's row before those of its first tile.

    Attributes:
        head: KV head that the share begins in, times chunks of its query heads.
        tile: tile that it begins in.
        begin: position in this tile that it begins at.
        blocks: positions of the share.
        touched: tiles that it has a piece of.
        merges: later workers whose partial results of its last tile it adds.
        live: live queries of the step.
        merge_halves: halves of the last tile that have live queries.
    """

    head: I32
    tile: I32
    begin: I32
    blocks: I32
    touched: I32
    merges: I32
    live: I32
    merge_halves: I32

    @classmethod
    def read(cls, worker_ref, worker) -> "Share":
        """Read the share of a worker."""
        return cls(*(worker_ref[worker, i] for i in range(SHARE_FIELDS)))


class Tile(NamedTuple):
    """The units of a tile by class: indices in the unit list, then counts of blocks.

    The list of a tile has the units that all its rows see whole, then those that both
    halves, only the first and only the second half see under a mask.

    Attributes:
        masked: index of the first unit under a mask.
        both_end: one past the last unit that both halves see under a mask.
        first_end: one past the last unit that only the first half sees.
        second_end: one past the last unit that only the second half sees.
        whole: blocks that need no mask.
        both: blocks under a mask for both halves.
        first: blocks for the first half.
        second: blocks for the second half.
    """

    masked: I32
    both_end: I32
    first_end: I32
    second_end: I32
    whole: I32
    both: I32
    first: I32
    second: I32

    @classmethod
    def read(cls, ref, row, begin: int = 0) -> "Tile":
        """Read a tile from the fields of a row from `begin` on."""
        return cls(*(ref[row, begin + i] for i in range(TILE_FIELDS)))

    @property
    def blocks(self):
        """Blocks of the tile."""
        return self.whole + self.both + self.first + self.second


class Piece(NamedTuple):
    """What of a worker's share lies in one tile.

    Attributes:
        head: KV head, times chunks of its query heads.
        index: number of the tile.
        tile: fields of the tile.
        begin: first position of the tile that belongs to the piece.
        stop: one past the last.
        left: positions of the share that follow.
    """

    head: I32
    index: I32
    tile: Tile
    begin: I32
    stop: I32
    left: I32

    @property
    def split(self):
        """Where the blocks that need no mask end."""
        return jnp.clip(self.tile.whole, self.begin, self.stop)

    def ranges(self, masked_first):
        """Return the blocks to walk: without a mask, under one, and without again.

        With 3 blocks that need no mask, the piece 1:5 is walked as 1:3, 3:5 and
        nothing, or if masked ones come first as nothing, 3:5 and 1:3.

        Args:
            masked_first: what the function of that name says of the worker.
        """
        if masked_first is None:
            return (self.begin, self.split), (self.split, self.last), (0, 0)
        pause = jnp.where(masked_first, self.begin, self.split)
        return (self.begin, pause), (self.split, self.last), (pause, self.split)

    def first_block(self, masked_first):
        """Return the position of the block that is walked first, if there is any."""
        if masked_first is None:
            return self.begin
        has_masked = self.split < self.last
        return jnp.where(masked_first & has_masked, self.split, self.begin)

    @property
    def ends_tile(self):
        """Whether no later worker has a piece of the tile."""
        return self.stop >= jnp.maximum(self.tile.blocks, 1)

    @property
    def last(self):
        """Where the blocks end; a tile that sees nothing has a position without one."""
        return jnp.minimum(self.stop, self.tile.blocks)


def for_each_piece(
    spec: KernelSpec, worker_ref, tile_ref, worker, body: Callable, carry
):
    """Run `carry = body(piece, carry)` for each piece of a share, in order."""
    head, index, begin, left, count, *_ = Share.read(worker_ref, worker)
    tile = Tile.read(worker_ref, worker, SHARE_FIELDS)

    def step(_, state):
        head, index, begin, left, tile, carry = state
        stop = jnp.minimum(begin + left, jnp.maximum(tile.blocks, 1))
        left -= stop - begin
        carry = body(Piece(head, index, tile, begin, stop, left), carry)
        wraps = index + 1 == spec.num_tiles
        index = jnp.where(wraps, 0, index + 1)
        head = jnp.where(wraps, head + 1, head)
        tile = Tile.read(tile_ref, index)
        return head, index, I32(0), left, tile, carry

    return lax.fori_loop(0, count, step, (head, index, begin, left, tile, carry))[-1]


def masked_first(num_pairs: int, num_workers: int, worker):
    """Return whether a worker begins each tile with masked blocks; None if none does.

    Where workers have several tiles each, every second one does. These blocks are
    leaves as a rule, which come from memory. So some workers wait for the memory while
    others, at a shared prefix that the L2 cache holds, wait for the matrix units.
    """
    return lax.rem(worker, I32(2)) == 1 if num_pairs > num_workers else None


def first_piece(share: Share, tile: Tile) -> Piece:
    """Return the piece that a share begins with."""
    stop = jnp.minimum(share.begin + share.blocks, jnp.maximum(tile.blocks, 1))
    left = share.blocks - (stop - share.begin)
    return Piece(share.head, share.tile, tile, share.begin, stop, left)


def block_units(per_block: int, tile: Tile, block):
    """Return the index of a block's first unit, and one past the last it may read.

    Args:
        per_block: units of a block.
        tile: tile that the block belongs to.
        block: position of the block in the tile.
    """
    whole = whole_units(per_block, tile, block)
    begin, end = masked_units(per_block, tile, block)
    masked = block >= tile.whole
    return jnp.where(masked, begin, whole), jnp.where(masked, end, whole + per_block)


def whole_units(per_block: int, tile: Tile, block):
    """Return the index of the first unit of a block that needs no mask.

    With 4 units a block and 2 whole blocks before the first masked unit, which has
    index 108, block 1 begins at 108 + (1 - 2) * 4 = 104.
    """
    return tile.masked + (block - tile.whole) * per_block


def masked_units(per_block: int, tile: Tile, block):
    """Return the first unit of a block under a mask, and the end of its class's units.

    A class ends where it ends, so that its last block may lack units.
    """
    block = block - tile.whole
    in_both = block < tile.both
    half, nth = owner(tile, block - tile.both)
    begin = jnp.where(half == 0, tile.both_end, tile.first_end)
    end = jnp.where(half == 0, tile.first_end, tile.second_end)
    begin = jnp.where(in_both, tile.masked, begin)
    end = jnp.where(in_both, tile.both_end, end)
    return begin + jnp.where(in_both, block, nth) * per_block, end


def owner(tile: Tile, block):
    """Return the half that alone sees a block, and the block's number in the half.

    The blocks of the two halves take turns, so that both warpgroups have work. With 3
    blocks for the first half and 1 for the second:

        block    0 1 2 3
        half     0 1 0 0
        number   0 0 1 2

    Args:
        tile: tile that the block belongs to.
        block: number of the block among those that only one half sees.
    """
    shared = jnp.minimum(tile.first, tile.second)
    turns = block < 2 * shared
    longer = jnp.where(tile.first > tile.second, 0, 1)
    half = jnp.where(turns, lax.rem(block, I32(2)), longer)
    return half, jnp.where(turns, lax.div(block, I32(2)), block - shared)
