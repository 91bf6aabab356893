"""Work of the GPU kernels: which worker reads which KV for which rows of queries.

A *tile* is a run of queries whose rows (a query has one row per query head of its KV
head) fit a kernel's matrix tile. A *unit* is the part of a page that one copy moves.
Each tile lists the units it sees, in *blocks* of tokens; the blocks of all heads and
tiles, in that order, are one line of *positions* that is divided into equal *shares*,
one per worker (DeFT, arXiv 2404.00242, section 3.3, flattened tree KV split). A tile in
which a share ends is in several *pieces*, each with a partial result of its worker.
Where the attention kernel merges them, the worker with the tile's beginning does: it
comes to that piece last, the others to theirs first.

    2 heads, tiles of 3 and 2 blocks, 4 workers: 10 positions, shares of 3 3 2 2

    head, tile    0,0    0,1  1,0    1,1        pieces of the tiles
    worker        0 0 0  1 1  1 2 2  3 3        1 1 2 1
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from deft_jax.attention.grouping import Grouping
from deft_jax.attention.shares import Shares, even_shares
from deft_jax.attention.spec import Tiling
from deft_jax.attention.units import classify, list_units
from deft_jax.pallas_kernels.grouped_partial_attention import work
from deft_jax.pallas_kernels.kernel_spec import TILE_ROWS, KernelSpec
from deft_jax.tree.counting import exclusive_cumsum


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
    """Work lists of a step: `T` tiles, `M * P // U` units of `U` tokens.

    Attributes:
        unit: [T * units] int32, all units for each tile, class by class, the
            ones that it does not see last. Unit `u` is part `u % (P // U)` of page
            `u // (P // U)`.
        tile: [T, 8] int32: index in `unit` of the first one under a mask and of the
            ends of the three masked classes, then the blocks of the four classes.
        worker: [W, 16 + block_tokens // U] int32: KV head, tile and position (in
            blocks) where the share begins, its blocks, the pieces of tiles it touches,
            the later workers whose pieces of its last tile it merges, the live queries,
            the halves of that last tile that have any, the fields of the first tile,
            and the units of its first block.
        pieces: [K * T, 2] int32: first worker and number of workers of each pair.
        flags: [W, halves] int32, zeros. A kernel raises them to tell which partial
            results are there, and leaves zeros. XLA does not know that it writes them,
            so two kernels that are given the same array must not run at the same time:
            neither layers nor networks (a model and its drafter, whose equal schedules
            the compiler makes one) on two streams or side by side in one graph.
    """

    unit: jax.Array
    tile: jax.Array
    worker: jax.Array
    pieces: jax.Array
    flags: jax.Array


def make_schedule(
    grouping: Grouping, tiling: Tiling, *, window: int | None = None
) -> Schedule:
    """List and divide the work of one step's attention.

    Args:
        grouping: what each query of the step sees.
        tiling: sizes of tiles, units and blocks.
        window: a query sees only tokens less than this many positions back; units that
            are too far back for all are left out. None for no window.
    """
    classes = classify(grouping, tiling, window)
    unit, ends = list_units(classes)
    tile, positions = describe_tiles(ends, classes.shape[1], tiling)
    return divide(unit, tile, positions, even_shares, grouping.num_live, tiling)


def divide(
    unit: jax.Array,
    tile: jax.Array,
    positions: jax.Array,
    make_shares: Callable[[jax.Array, int], Shares],
    num_live: jax.Array,
    tiling: Tiling,
) -> Schedule:
    """Divide the work of known tiles among the workers.

    Args:
        unit: [T * units] int32, what `Schedule.unit` is to be.
        tile: [T, 8] int32, what `Schedule.tile` is to be.
        positions: [T] int32, positions of each tile, which `describe_tiles` gives.
        make_shares: from the number of positions of all heads and the number of workers
            to the shares; `even_shares` is one.
        num_live: [] int32, live queries.
        tiling: sizes of tiles, units and blocks.
    """
    worker, pieces = _worker_rows(tile, positions, make_shares, num_live, tiling)
    worker = jnp.concatenate(
        [worker, _first_units(worker, unit, len(tile), tiling)], axis=1
    )
    # Zeros that the compiler does not know as such: a constant would be shared by runs
    # that overlap.
    blocks = worker[:, work.Share._fields.index("blocks"), None]
    flags = jnp.broadcast_to(jnp.minimum(blocks, 0), (len(worker), tiling.halves))
    return Schedule(unit=unit, tile=tile, worker=worker, pieces=pieces, flags=flags)


def describe_tiles(ends: jax.Array, num_units: int, tiling: Tiling):
    """Return `Schedule.tile`, and the positions [T] int32 of each tile, at least one.

    A tile that sees nothing has one position and no block, so that somebody writes its
    zeros. Units seen whole that do not fill a block are read under a mask.

        2 units per block, ends of a tile's classes 5 6 6 9
        bounds   4 6 6 9    two blocks seen whole; unit 4 is read under the mask
        blocks   2 1 0 2    5 positions
    """
    per_block = tiling.block_tokens // tiling.unit_tokens
    whole = ends[:, :1] // per_block
    bounds = jnp.concatenate([whole * per_block, ends[:, 1:]], axis=1)
    blocks = -(-(bounds[:, 1:] - bounds[:, :-1]) // per_block)
    blocks = jnp.concatenate([whole, blocks], axis=1)
    begin = num_units * jnp.arange(len(ends), dtype=jnp.int32)[:, None]
    tile = jnp.concatenate([begin + bounds, blocks], axis=1)
    return tile, jnp.maximum(jnp.sum(blocks, axis=1), 1)


def _first_units(worker, unit, num_tiles: int, tiling: Tiling):
    """Return the units [W, block_tokens // U] int32 of each worker's first block."""
    per_block = tiling.block_tokens // tiling.unit_tokens
    num_pairs = num_tiles * tiling.num_kv_heads

    def units(worker, row):
        tile = work.Tile(*row[work.SHARE_FIELDS :])
        piece = work.first_piece(work.Share(*row[: work.SHARE_FIELDS]), tile)
        order = work.masked_first(num_pairs, tiling.num_workers, worker)
        block = piece.first_block(order)
        begin, end = work.block_units(per_block, tile, block)
        each = begin + jnp.arange(per_block, dtype=jnp.int32)
        return unit[jnp.maximum(jnp.minimum(each, end - 1), 0)]

    return jax.vmap(units)(jnp.arange(len(worker), dtype=jnp.int32), worker)


def _worker_rows(tile_fields, positions, make_shares, num_live, tiling: Tiling):
    """Return `Schedule.worker` without the first block's units, and `Schedule.pieces`.

    The example of the module's docstring, where `per_head` is 5:

        worker         0  1  2  3
        bound          0  3  6  8  10
        head, tile     0,0  0,1  1,0  1,1    where the share begins
        position       0  0  1  0            of that beginning within its tile
        last tile      0,0  1,0  1,0  1,1    with the last of the share's positions
        touched        1  2  1  1            pieces of tiles
        later          0  1  0  0            workers that have the rest of the last tile
    """
    num_tiles, workers = positions.shape[0], tiling.num_workers
    upto = exclusive_cumsum(positions)
    per_head = upto[-1]
    bound, worker_of = make_shares(per_head * tiling.num_kv_heads, workers)

    def locate(position):
        head, within = position // per_head, position % per_head
        tile = jnp.sum(upto[None, 1:] <= within[:, None], axis=1, dtype=jnp.int32)
        return head, tile, within - upto[tile]

    head, tile, position = locate(bound[:-1])
    last_head, last_tile, _ = locate(bound[1:] - 1)
    blocks = bound[1:] - bound[:-1]
    touched = (last_head - head) * num_tiles + last_tile - tile + 1
    last_worker = worker_of(last_head * per_head + upto[last_tile + 1] - 1)
    second = last_tile * tiling.tile_queries + tiling.half_queries
    busy = blocks > 0
    begins_last = busy & ((position == 0) | (touched > 1))
    later = last_worker - jnp.arange(workers, dtype=jnp.int32)
    fields = [
        *(head, tile, position, blocks, jnp.where(busy, touched, 0)),
        jnp.where(begins_last, later, 0),
        jnp.broadcast_to(num_live, (workers,)),
        jnp.where((second < num_live) & (tiling.halves > 1), 2, 1),
    ]
    worker = jnp.concatenate([jnp.stack(fields, axis=1), tile_fields[tile]], axis=1)
    heads = jnp.arange(tiling.num_kv_heads, dtype=jnp.int32)[:, None] * per_head
    begin, stop = heads + upto[None, :-1], heads + upto[None, 1:]
    first = worker_of(begin)
    pieces = jnp.stack([first, worker_of(stop - 1) - first + 1], axis=-1)
    return worker, pieces.reshape(-1, 2)


def head_chunks(
    group: int, rows: int, queries: Callable[[int], int] = lambda heads: 1
) -> int:
    """Return in how many equal parts a group's query heads fit a tile's rows.

    A group of 71 heads and 64 rows: 71 parts, since 71 is a prime. One of 96: 2 parts.

    Args:
        group: `G`, query heads that share a KV head.
        rows: matrix rows of a tile.
        queries: from the heads of a part to the least queries of a tile.
    """
    parts = (c for c in range(1, group + 1) if group % c == 0)
    return next(c for c in parts if group // c * queries(group // c) <= rows)


def partial_bytes(spec: KernelSpec, schedule: Schedule) -> jax.Array:
    """Return the bytes [] int32 of partial results that the Hopper kernels write."""
    pieces = schedule.pieces[:, 1]
    # Where the attention kernel merges, the first piece of a tile stays in registers.
    kept = 1 if spec.fused else 0
    written = jnp.sum(jnp.where(pieces > 1, pieces - kept, 0))
    row = spec.head_dim * jnp.dtype(spec.dtype).itemsize
    return written * spec.halves * (spec.partial_rows * row + TILE_ROWS * 4)
