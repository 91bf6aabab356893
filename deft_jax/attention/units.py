"""Which units of KV each tile of queries sees, by class.

Within a tile the units come in four classes: seen whole by every row, which need no
mask; seen by both halves of the tile; by the first half only; by the second only.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from deft_jax.attention.grouping import Grouping
from deft_jax.attention.spec import Tiling
from deft_jax.tree.counting import sum_before

NUM_CLASSES = 4
WHOLE, BOTH, FIRST_HALF, SECOND_HALF = range(NUM_CLASSES)

CHUNK, RUN = 16, 15
"""Units per chunk and chunks per run; the units of a run fit in a byte."""

MAX_COMPARED = 2**23
"""Pairs of units of all tiles up to which all are compared; takes fewer kernels."""


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


def list_units(classes):
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
