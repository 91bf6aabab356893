"""Work of the GPU kernels: which worker reads which KV for which rows of queries.

A *tile* is a run of queries whose rows (a query has one row per query head of its KV
head) fit a kernel's matrix tile. A *unit* is the part of a page that one copy moves.
Each tile lists the units it sees, in *blocks* of tokens; the blocks of all heads and
tiles, in that order, are one line that is cut into equal shares, one per worker (DeFT,
arXiv 2404.00242, section 3.3, flattened tree KV split). A tile cut by a share's end
leaves a partial result per worker. Where the attention kernel merges them, the worker
with the tile's beginning does: it comes to that piece last, the others to theirs first.

Within a tile the units come in four classes: seen whole by every row, which need no
mask; seen by both halves of the tile; by the first half only; by the second only.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from deft_jax.attention.grouping import Grouping
from deft_jax.pallas_kernels.grouped_partial_attention import work
from deft_jax.tree.counting import exclusive_cumsum, sum_before

NUM_CLASSES = 4
WHOLE, BOTH, FIRST_HALF, SECOND_HALF = range(NUM_CLASSES)

CHUNK, RUN = 16, 15
"""Units per chunk and chunks per run; the units of a run fit in a byte."""

MAX_COMPARED = 2**23
"""Pairs of units of all tiles up to which all are compared; takes fewer kernels."""


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
        unit: [T * E] int32, units of the tiles: `E` for each, class by class, the ones
            that it does not see last. Unit `u` is part `u % (P // U)` of page
            `u // (P // U)`.
        tile: [T, 8] int32: index in `unit` of the first one under a mask and of the
            ends of the three masked classes, then the blocks of the four classes.
        worker: [W, 16 + block_tokens // U] int32: KV head, tile and position (in
            blocks) where the share begins, its blocks, the pieces of tiles it touches,
            the later workers whose pieces of its last tile it merges, the live queries,
            the halves of that last tile that have any, the fields of the first tile,
            and the units of its first block.
        pieces: [K * T, 2] int32: first worker and number of workers of each pair.
        flags: [W, halves] int32, zeros. A kernel uses them to tell which partial
            results are there, and leaves zeros.
    """

    unit: jax.Array
    tile: jax.Array
    worker: jax.Array
    pieces: jax.Array
    flags: jax.Array


def make_schedule(
    grouping: Grouping, tiling: Tiling, *, window: int | None = None
) -> Schedule:
    """Lists and splits the work of one step's attention.

    Args:
        grouping: of the step.
        tiling: static sizes.
        window: as in `tree_attention`; units that are too far back are left out.
    """
    classes = classify(grouping, tiling, window)
    unit, ends = _list_units(classes)
    tile, positions = describe_tiles(ends, classes.shape[1], tiling)
    return share(unit, tile, positions, even_cut, grouping.num_live, tiling)


def share(
    unit: jax.Array,
    tile: jax.Array,
    positions: jax.Array,
    make_cut: "Callable[[jax.Array, int], Cut]",
    num_live: jax.Array,
    tiling: Tiling,
) -> Schedule:
    """The schedule whose units and tiles are known.

    Args:
        unit: as `Schedule.unit`.
        tile: as `Schedule.tile`.
        positions: [T] int32, positions of each tile, as `describe_tiles` gives them.
        make_cut: from the positions of all heads' tiles and the number of workers to
            the shares, such as `even_cut`.
        num_live: [] int32, live queries.
        tiling: static sizes.
    """
    worker, pieces = _share(tile, positions, make_cut, num_live, tiling)
    worker = jnp.concatenate(
        [worker, _first_units(worker, unit, len(tile), tiling)], axis=1
    )
    # Zeros that the compiler does not know as such: a constant would be shared by runs
    # that overlap.
    blocks = worker[:, work.Share._fields.index("blocks"), None]
    flags = jnp.broadcast_to(jnp.minimum(blocks, 0), (len(worker), tiling.halves))
    return Schedule(unit=unit, tile=tile, worker=worker, pieces=pieces, flags=flags)


def classify(grouping: Grouping, tiling: Tiling, window: int | None) -> jax.Array:
    """[T, E] int32: class of each unit for each tile, NUM_CLASSES where it sees none.

    Rows past the live queries are written as zeros whatever they see, so a unit is seen
    whole by a tile if every live row sees it.
    """
    tile_queries, half_queries = tiling.tile_queries, tiling.half_queries
    num_tiles = -(-grouping.num_queries // tile_queries)
    seen = _seen_ranges(grouping, tiling)
    tile_start = tile_queries * jnp.arange(num_tiles, dtype=jnp.int32)[:, None]
    sees, whole = [], []
    for half in range(tiling.halves):
        start = tile_start + half * half_queries
        stop = jnp.minimum(start + half_queries, grouping.num_live)
        some = (seen.first < stop) & (seen.end > start)
        all_of_it = (seen.last_first <= start) & (seen.first_end >= stop)
        if window is not None:
            least, most = _query_range(grouping, tiling, half)
            some &= least - seen.latest < window
            all_of_it &= most - seen.earliest < window
        sees.append(some)
        whole.append(all_of_it | (start >= stop))
    kind = jnp.where(sees[0], FIRST_HALF, SECOND_HALF)
    kind = jnp.where(sees[0] & sees[-1], BOTH, kind)
    kind = jnp.where(sees[0] | sees[-1], kind, NUM_CLASSES)
    return jnp.where(whole[0] & whole[-1] & sees[0], WHOLE, kind)


class _Seen(NamedTuple):
    """What is seen of each unit, [1, E] int32 each.

    Attributes:
        first: first rank that sees any of it.
        end: one past the last.
        last_first: largest of the tokens' first ranks.
        first_end: least of the ends.
        latest: largest position along the path.
        earliest: least position.
    """

    first: jax.Array
    end: jax.Array
    last_first: jax.Array
    first_end: jax.Array
    latest: jax.Array
    earliest: jax.Array


def _seen_ranges(grouping: Grouping, tiling: Tiling) -> _Seen:
    fields = grouping.slot_first, grouping.slot_end, grouping.slot_position
    first, end, position = (x.reshape(1, -1, tiling.unit_tokens) for x in fields)
    largest = jnp.iinfo(jnp.int32).max // 2
    seen = first < end
    return _Seen(
        first=jnp.min(jnp.where(seen, first, largest), axis=2),
        end=jnp.max(jnp.where(seen, end, 0), axis=2),
        last_first=jnp.max(first, axis=2),
        first_end=jnp.min(end, axis=2),
        latest=jnp.max(jnp.where(seen, position, -largest), axis=2),
        earliest=jnp.min(jnp.where(seen, position, largest), axis=2),
    )


def _query_range(grouping: Grouping, tiling: Tiling, half: int):
    """[T, 1] int32 twice: least and largest position of a half's live queries."""
    largest = jnp.iinfo(jnp.int32).max // 2
    query = query_positions(grouping, tiling)
    live = jnp.arange(query.size).reshape(query.shape) < grouping.num_live
    least = jnp.min(jnp.where(live, query, largest), axis=1)
    most = jnp.max(jnp.where(live, query, -largest), axis=1)
    return (x[half :: tiling.halves, None] for x in (least, most))


def query_positions(grouping: Grouping, tiling: Tiling) -> jax.Array:
    """[T * halves, half_queries] int32: positions of the queries, zeros as padding."""
    num_tiles = -(-grouping.num_queries // tiling.tile_queries)
    rows = num_tiles * tiling.tile_queries
    query = jnp.pad(grouping.query_position, (0, rows - grouping.num_queries))
    return query.reshape(-1, tiling.half_queries)


def _list_units(classes):
    """Units by tile and class, and [T, 4] int32 where the classes end within a tile."""
    num_tiles, num_units = classes.shape
    unit = jnp.arange(num_units, dtype=jnp.int32)
    if classes.size * num_units <= MAX_COMPARED:
        place, ends = _places_by_comparing(classes)
        here = place[:, None] == unit[None, :, None]
        listed = jnp.sum(jnp.where(here, unit[None, None], 0), axis=2, dtype=jnp.int32)
        return listed.ravel(), ends
    place, ends = _places_by_counting(classes)
    tile = jnp.arange(num_tiles, dtype=jnp.int32)[:, None]
    # Every place is taken, since units that a tile does not see follow the others. But
    # an empty array would be a new one for every layer, and so would this list.
    listed = jnp.zeros(classes.shape, jnp.int32)
    unit = jnp.broadcast_to(unit, classes.shape)
    listed = listed.at[tile, place].set(unit, mode="drop", unique_indices=True)
    return listed.ravel(), ends


def _places_by_comparing(classes):
    """[T, E] int32 place of each unit within its tile, and [T, 4] ends of the classes.

    Quadratic, but few kernels of a GPU.
    """
    num_units = classes.shape[1]
    own = jnp.arange(num_units + NUM_CLASSES, dtype=jnp.int32)[None]
    is_unit = own < num_units
    # Behind the units, a marker for the end of each class.
    kind = jnp.pad(classes, ((0, 0), (0, NUM_CLASSES)))
    kind = jnp.where(is_unit, kind, own - num_units + 1)
    key = num_units * kind + jnp.where(is_unit, own, 0)
    # Without the barrier the comparisons are fused with the key and written to memory.
    key = lax.optimization_barrier(key)
    below = is_unit[:, None] & (key[:, None] < key[:, :, None])
    below = jnp.sum(below, axis=2, dtype=jnp.int32)
    return below[:, :num_units], below[:, num_units:]


def _places_by_counting(classes):
    """As `_places_by_comparing`, by prefix sums over units, chunks and runs of chunks.

    A class is one in a byte of its own, so that a sum over a run holds the counts of
    all. What a tile does not see is placed by what it sees.
    """
    num_tiles, num_units = classes.shape
    size = RUN * CHUNK
    runs = -(-num_units // size)
    one = jnp.where(classes < NUM_CLASSES, 1 << 8 * classes, 0)
    one = jnp.pad(one, ((0, 0), (0, runs * size - num_units)))
    # Computed once, whatever the compiler makes of the many that read it.
    one = lax.optimization_barrier(one).reshape(num_tiles, runs, size)
    shift = 8 * jnp.arange(NUM_CLASSES, dtype=jnp.int32).reshape(1, -1, 1, 1)

    bound = CHUNK * jnp.arange(RUN + 1, dtype=jnp.int32)[:, None]
    earlier = jnp.arange(size, dtype=jnp.int32)[None] < bound
    chunk = jnp.where(earlier[None, None], one[:, :, None], 0)
    chunk = jnp.sum(chunk, axis=3, dtype=jnp.int32)[:, None] >> shift & 255
    run = sum_before(jnp.pad(chunk[..., RUN], ((0, 0), (0, 0), (0, 1))))
    total = run[..., runs]

    own, kind = one.reshape(num_tiles, 1, runs, RUN, CHUNK), 1 << shift
    before = (run[..., :runs, None] + chunk[..., :RUN])[..., None]
    before = jnp.where((own == kind[..., None]) | (own == 0), before, 0)
    like = (own[..., None, :] == own[..., None]) != (own == 0)[..., None]
    nth = jnp.sum(jnp.tril(like, -1), axis=(1, 5), dtype=jnp.int32)
    nth += jnp.sum(before, axis=1, dtype=jnp.int32)

    nth, own = (x.reshape(num_tiles, -1)[:, :num_units] for x in (nth, own))
    unit = jnp.arange(num_units, dtype=jnp.int32)[None]
    follows = (own[:, None] > kind[..., 0]) | (own == 0)[:, None]
    begin = jnp.where(follows, total[..., None], 0)
    place = jnp.sum(begin, axis=1, dtype=jnp.int32)
    place += jnp.where(own == 0, unit - nth, nth)
    return place, total + sum_before(total)


def describe_tiles(ends: jax.Array, num_units: int, tiling: Tiling):
    """`Schedule.tile` and [T] int32 positions per tile, at least one for each.

    A tile that sees nothing has one position and no block, so that somebody writes its
    zeros. Units seen whole that do not fill a block are read under a mask.
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
    """[W, block_tokens // U] int32: the units of each worker's first block."""
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


class Cut(NamedTuple):
    """Which positions each worker gets.

    Attributes:
        bound: [W + 1] int32, worker `w` gets `bound[w] : bound[w + 1]`.
        worker_of: from positions to the workers that get them.
    """

    bound: jax.Array
    worker_of: Callable[[jax.Array], jax.Array]


def even_cut(total: jax.Array, workers: int) -> Cut:
    """Shares that differ by one position at most.

    Args:
        total: [] int32, positions.
        workers: shares.
    """
    each, rest = total // workers, total % workers
    bound = jnp.arange(workers + 1, dtype=jnp.int32)

    def worker_of(position):
        long = rest * (each + 1)
        later = rest + (position - long) // jnp.maximum(each, 1)
        return jnp.where(position < long, position // (each + 1), later)

    return Cut(bound * each + jnp.minimum(bound, rest), worker_of)


def cut_at(bound: jax.Array) -> Cut:
    """Shares of any size; workers without one come last.

    Args:
        bound: [W + 1] int32, from 0 to the number of positions, rising but at the end.
    """

    def worker_of(position):
        ends = bound[1:].reshape(*[1] * position.ndim, -1)
        return jnp.sum(ends <= position[..., None], axis=-1, dtype=jnp.int32)

    return Cut(bound, worker_of)


def _share(tile_fields, positions, make_cut, num_live, tiling: Tiling):
    """`Schedule.worker` and `Schedule.pieces`."""
    num_tiles, workers = positions.shape[0], tiling.num_workers
    upto = exclusive_cumsum(positions)
    per_head = upto[-1]
    bound, worker_of = make_cut(per_head * tiling.num_kv_heads, workers)

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
