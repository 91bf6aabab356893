"""Work of the GPU kernels: which worker reads which KV for which rows of queries.

A *tile* is a run of queries whose rows (a query has one row per query head of its KV
head) fit a kernel's matrix tile. A *unit* is the part of a page that one copy moves.
Each tile lists the units it sees, in *blocks* of tokens; the blocks of all heads and
tiles, in that order, are one line that is cut into equal shares, one per worker (DeFT,
arXiv 2404.00242, section 3.3, flattened tree KV split). A tile cut by a share's end
leaves a partial result per worker; the piece of `pair` (head and tile) that worker `w`
computes has slot `w + pair`, which is unique since each new piece starts a new pair or
a new worker.

Within a tile the units come in four classes: seen whole by every row, which need no
mask; seen by both halves of the tile; by the first half only; by the second only.
"""

import dataclasses

import jax
import jax.numpy as jnp

from deft_jax.grouping import Grouping
from deft_jax.tree import exclusive_cumsum

NUM_CLASSES = 4
WHOLE, BOTH, FIRST_HALF, SECOND_HALF = range(NUM_CLASSES)


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Static sizes of a schedule.

    Attributes:
        half_queries: queries per half of a tile.
        halves: 2 if different warpgroups own the halves of a tile, 1 if it has none.
        unit_tokens: `U`, tokens of a unit; divides the page size.
        block_tokens: tokens of a block, a multiple of `unit_tokens`.
        num_kv_heads: `K`.
        num_workers: `W`, shares to cut the work into.
    """

    half_queries: int
    halves: int
    unit_tokens: int
    block_tokens: int
    num_kv_heads: int
    num_workers: int

    @property
    def tile_queries(self) -> int:
        """Queries per tile."""
        return self.half_queries * self.halves


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Schedule:
    """Work lists of a step: `T` tiles, `E = M * P // U` units.

    Attributes:
        unit: [T * E] int32, units of the tiles, tile by tile and class by class. Unit
            `u` is part `u % (P // U)` of page `u // (P // U)`.
        tile: [T, 8] int32: index in `unit` of the first one under a mask and of the
            ends of the three masked classes, then the blocks of the four classes.
        worker: [W, 16] int32: KV head, tile and position (in blocks) where the share
            begins, its blocks, the pieces of tiles it touches, three zeros, and
            the fields of that first tile.
        pieces: [K * T, 2] int32: first worker and number of workers of each pair.
    """

    unit: jax.Array
    tile: jax.Array
    worker: jax.Array
    pieces: jax.Array


def make_schedule(
    grouping: Grouping, tiling: Tiling, *, window: int | None = None
) -> Schedule:
    """Lists and splits the work of one step's attention.

    Args:
        grouping: of the step.
        tiling: static sizes.
        window: as in `tree_attention`; units that are too far back are left out.
    """
    classes = _classify(grouping, tiling, window)
    unit, ends = _list_units(classes)
    tile, positions = _describe_tiles(ends, tiling)
    worker, pieces = _share(tile, positions, tiling)
    return Schedule(unit=unit, tile=tile, worker=worker, pieces=pieces)


def _classify(grouping: Grouping, tiling: Tiling, window):
    """[T, E] int32: class of each unit for each tile, NUM_CLASSES where it sees none.

    Rows past the live queries are written as zeros whatever they see, so a unit is seen
    whole by a tile if every live row sees it.
    """
    num_tiles = -(-grouping.num_queries // tiling.tile_queries)
    half = tiling.half_queries
    bound = half * jnp.arange(num_tiles * tiling.halves + 1, dtype=jnp.int32)
    start, stop = bound[:-1, None], jnp.minimum(bound[1:, None], grouping.num_live)
    slot_first = grouping.slot_first.reshape(-1, tiling.unit_tokens)
    slot_end = grouping.slot_end.reshape(-1, tiling.unit_tokens)
    seen = slot_first < slot_end
    largest = jnp.iinfo(jnp.int32).max
    first = jnp.min(jnp.where(seen, slot_first, largest), axis=1)[None]
    end = jnp.max(jnp.where(seen, slot_end, 0), axis=1)[None]
    sees = (first < stop) & (end > start)
    whole = jnp.max(slot_first, axis=1)[None] <= start
    whole &= jnp.min(slot_end, axis=1)[None] >= stop
    if window is not None:
        near, far = _distances(grouping, tiling, seen)
        sees &= near < window
        whole &= far < window
    whole |= start >= stop
    shape = (num_tiles, tiling.halves, -1)
    sees, whole = sees.reshape(shape), jnp.all(whole.reshape(shape), axis=1)
    kinds = jnp.array([NUM_CLASSES, FIRST_HALF, SECOND_HALF, BOTH], jnp.int32)
    some = kinds[sees[:, 0].astype(jnp.int32) + 2 * sees[:, -1].astype(jnp.int32)]
    return jnp.where(whole & sees[:, 0], WHOLE, some)


def _distances(grouping: Grouping, tiling: Tiling, seen):
    """[halves, E] int32 twice: least and largest distance of a unit along the path."""
    largest = jnp.iinfo(jnp.int32).max // 2
    position = grouping.slot_position.reshape(seen.shape)
    unit_last = jnp.max(jnp.where(seen, position, -largest), axis=1)
    unit_first = jnp.min(jnp.where(seen, position, largest), axis=1)
    query = query_positions(grouping, tiling)
    live = jnp.arange(query.size).reshape(query.shape) < grouping.num_live
    least = jnp.min(jnp.where(live, query, largest), axis=1)
    most = jnp.max(jnp.where(live, query, -largest), axis=1)
    return least[:, None] - unit_last[None], most[:, None] - unit_first[None]


def query_positions(grouping: Grouping, tiling: Tiling) -> jax.Array:
    """[T * halves, half_queries] int32: positions of the queries, zeros as padding."""
    num_tiles = -(-grouping.num_queries // tiling.tile_queries)
    rows = num_tiles * tiling.tile_queries
    query = jnp.pad(grouping.query_position, (0, rows - grouping.num_queries))
    return query.reshape(-1, tiling.half_queries)


def _list_units(classes):
    """Units by tile and class, and [T, 5] int32 where the classes begin and end."""
    num_tiles, num_units = classes.shape
    kinds = jnp.arange(NUM_CLASSES, dtype=jnp.int32)[None, :, None]
    member = classes[:, None] == kinds
    nth = jnp.cumsum(member, axis=2, dtype=jnp.int32)
    upto = exclusive_cumsum(nth[:, :, -1].ravel())
    begin = upto[:-1].reshape(num_tiles, NUM_CLASSES)
    capacity = num_tiles * num_units
    place = jnp.where(member, begin[:, :, None] + nth - 1, 0)
    at = jnp.where(classes < NUM_CLASSES, jnp.sum(place, axis=1), capacity)
    unit = jnp.broadcast_to(jnp.arange(num_units, dtype=jnp.int32), classes.shape)
    listed = jnp.zeros(capacity, jnp.int32)
    listed = listed.at[at].set(unit, mode="drop", unique_indices=True)
    ends = jnp.concatenate([begin, upto[NUM_CLASSES::NUM_CLASSES, None]], axis=1)
    return listed, ends


def _describe_tiles(ends, tiling: Tiling):
    """`Schedule.tile` and [T] int32 positions per tile, at least one for each.

    A tile that sees nothing has one position and no block, so that somebody writes its
    zeros. Units seen whole that do not fill a block are read under a mask.
    """
    per_block = tiling.block_tokens // tiling.unit_tokens
    whole = (ends[:, 1] - ends[:, 0]) // per_block
    begin = ends[:, 0] + whole * per_block
    bounds = jnp.concatenate([begin[:, None], ends[:, 2:]], axis=1)
    masked = -(-(bounds[:, 1:] - bounds[:, :-1]) // per_block)
    tile = jnp.concatenate([bounds, whole[:, None], masked], axis=1)
    return tile, jnp.maximum(whole + jnp.sum(masked, axis=1), 1)


def _share(tile_fields, positions, tiling: Tiling):
    """`Schedule.worker` and `Schedule.pieces`: an even split of all heads' blocks."""
    num_tiles, workers = positions.shape[0], tiling.num_workers
    upto = exclusive_cumsum(positions)
    per_head = upto[-1]
    total = per_head * tiling.num_kv_heads
    each, rest = total // workers, total % workers
    bound = jnp.arange(workers + 1, dtype=jnp.int32)
    bound = bound * each + jnp.minimum(bound, rest)

    def locate(position):
        head, within = position // per_head, position % per_head
        tile = jnp.sum(upto[None, 1:] <= within[:, None], axis=1, dtype=jnp.int32)
        return head, tile, within - upto[tile]

    head, tile, position = locate(bound[:-1])
    last_head, last_tile, _ = locate(bound[1:] - 1)
    blocks = bound[1:] - bound[:-1]
    touched = (last_head - head) * num_tiles + last_tile - tile + 1
    fields = [head, tile, position, blocks, jnp.where(blocks > 0, touched, 0)]
    fields = jnp.pad(jnp.stack(fields, axis=1), ((0, 0), (0, 3)))
    worker = jnp.concatenate([fields, tile_fields[tile]], axis=1)
    heads = jnp.arange(tiling.num_kv_heads, dtype=jnp.int32)[:, None] * per_head
    begin, stop = heads + upto[None, :-1], heads + upto[None, 1:]

    def worker_of(position):
        long = rest * (each + 1)
        later = rest + (position - long) // jnp.maximum(each, 1)
        return jnp.where(position < long, position // (each + 1), later)

    first = worker_of(begin)
    pieces = jnp.stack([first, worker_of(stop - 1) - first + 1], axis=-1)
    return worker, pieces.reshape(-1, 2)
