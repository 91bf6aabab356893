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
    """Return the class [T, units] int32 of each unit for each tile.

    It is NUM_CLASSES where the tile sees none of the unit. Rows past the live queries
    are written as zeros whatever they see, so a unit is seen whole by a tile if every
    live row sees it.

        a tile of the queries 0 1 | 2 3, all live, and units whose tokens are seen by
        0:4      WHOLE          1:2, 1:2   FIRST_HALF
        0:4, 1:4 BOTH           2:4        SECOND_HALF, for one half does not see it
        1:3      BOTH           5:9        NUM_CLASSES

    Args:
        grouping: what each query sees.
        tiling: sizes of tiles, units and blocks.
        window: a query sees only tokens less than this many positions back, or None.
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
    """Bounds of what queries see of each unit.

    Attributes:
        first: [1, units] int32, first rank that sees any token of the unit.
        end: [1, units] int32, one past the last such rank.
        last_first: [1, units] int32, largest first rank of a token, seen or not.
        first_end: [1, units] int32, least end of a token; the ranks in
            `last_first : first_end` see the whole unit.
        latest: [1, units] int32, largest path position of a seen token.
        earliest: [1, units] int32, least path position of a seen token.
    """

    first: jax.Array
    end: jax.Array
    last_first: jax.Array
    first_end: jax.Array
    latest: jax.Array
    earliest: jax.Array


def _seen_ranges(grouping: Grouping, tiling: Tiling) -> _Seen:
    """Return the bounds of each unit from those of its tokens."""
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
    """Return the least and the largest position [T, 1] int32 of a half's queries."""
    largest = jnp.iinfo(jnp.int32).max // 2
    query = query_positions(grouping, tiling)
    live = jnp.arange(query.size).reshape(query.shape) < grouping.num_live
    least = jnp.min(jnp.where(live, query, largest), axis=1)
    most = jnp.max(jnp.where(live, query, -largest), axis=1)
    return (x[half :: tiling.halves, None] for x in (least, most))


def query_positions(grouping: Grouping, tiling: Tiling) -> jax.Array:
    """Return the queries' positions [T * halves, half_queries] int32, zero-padded."""
    num_tiles = -(-grouping.num_queries // tiling.tile_queries)
    rows = num_tiles * tiling.tile_queries
    query = jnp.pad(grouping.query_position, (0, rows - grouping.num_queries))
    return query.reshape(-1, tiling.half_queries)


def list_units(classes):
    """List the units of each tile, class by class.

        class of the units 0 to 5   2 0 4 0 1 2    4 is "not seen"
        index of each in the list   3 0 5 1 2 4
        list                        1 3 4 0 5 2
        ends of the classes         2 3 5 5

    Args:
        classes: [T, units] int32, class of each unit for each tile, NUM_CLASSES for
            units that a tile does not see.

    Returns:
        [T * units] int32, the lists one behind the other, and [T, 4] int32, where the
        classes end within each list.
    """
    num_tiles, num_units = classes.shape
    unit = jnp.arange(num_units, dtype=jnp.int32)
    if classes.size * num_units <= MAX_COMPARED:
        index, ends = _index_by_comparing(classes)
        here = index[:, None] == unit[None, :, None]
        listed = jnp.sum(jnp.where(here, unit[None, None], 0), axis=2, dtype=jnp.int32)
        return listed.ravel(), ends
    index, ends = _index_by_counting(classes)
    tile = jnp.arange(num_tiles, dtype=jnp.int32)[:, None]
    # Every entry is written, since units that a tile does not see follow the others.
    # But an empty array would be a new one for every layer, and so would this list.
    listed = jnp.zeros(classes.shape, jnp.int32)
    unit = jnp.broadcast_to(unit, classes.shape)
    listed = listed.at[tile, index].set(unit, mode="drop", unique_indices=True)
    return listed.ravel(), ends


def _index_by_comparing(classes):
    """Return each unit's index in its tile's list, and where the classes end.

    The index is the number of units with a smaller key, class by class and unit by
    unit; a marker behind each class counts the units up to its end likewise. Quadratic,
    but few kernels of a GPU.

        classes 2 0 4 0, 4 units   keys 4 * class + unit         8 1 18 3
        markers of the ends        keys 4 * (class + 1)          4 8 12 16
        units below each                                         2 0 3 1 | 2 2 3 3

    Returns:
        [T, units] int32 and [T, 4] int32.
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


def _index_by_counting(classes):
    """Return what `_index_by_comparing` does, by prefix sums, in linear time.

    Units are summed in three levels: within chunks of CHUNK units, within runs of RUN
    chunks, and over runs. A class is a 1 in a byte of its own, so that one sum of int32
    counts all four at once; the units of a run fit in a byte.

        class                 0          1          0          3          not seen
        one                   00000001   00000100   00000001   01000000   00000000  hex
        sum of the five       01 00 01 02: one of class 3, none of 2, one of 1, two of 0
        sum >> 8 * class & 255           gives the count of one class

    The index of a unit is then the number of units of lower classes in the whole tile
    (`begin`) plus those of its own class before it: in earlier runs and chunks
    (`before`), and in its chunk (`nth`, a lower triangle of comparisons). Units that
    are not seen follow all others in order: before unit `u` lie `u - nth` of them,
    where `nth` counts the units before it that are seen, of any class.

    Returns:
        [T, units] int32 and [T, 4] int32, index in the list and ends of the classes.
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
    index = jnp.sum(begin, axis=1, dtype=jnp.int32)
    index += jnp.where(own == 0, unit - nth, nth)
    return index, total + sum_before(total)
