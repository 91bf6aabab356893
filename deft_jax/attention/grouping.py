"""KV-guided grouping: which queries see which pages, as static-shaped arrays.

Query tokens are numbered in depth-first order over the forest; the number is the
query's *rank*. The queries below a node are then a range, so a cached token is seen by
the ranks in `[slot_first, slot_end)` and nothing else is needed for decoding,
token-tree verification, chunked prefill and several requests at once (DeFT, arXiv
2404.00242, sections 3.2 and 3.3, with intervals in place of bit masks). A query token
is seen from its own rank on, which is causal order within a node.

    tree:  A(3 tokens) + B(1, query r0)          token    A A A B C D
                       + C(1) - D(1, query r1)   first    0 0 0 0 1 1
                                                 end      2 2 2 1 2 2

Grouping is computed once per step and shared by all layers.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from deft_jax.attention.checks import as_int32, whole_number
from deft_jax.tree.appending import Slots
from deft_jax.tree.counting import (
    compares,
    count_below,
    earlier_equal,
    exclusive_cumsum,
)
from deft_jax.tree.state import Tree

MAX_TILE_QUERIES = 64
"""Queries per tile of a large batch."""

NARROW_SHARE = 8
"""A page is narrow if at most this part of a tile (one in so many) sees it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WorkList:
    """Pairs of a page and a tile of queries that sees it, the unit of attention work.

    Attributes:
        page: [J] int32, page of each pair; `J` is the capacity for pairs.
        query: [J] int32, first rank of the pair's tile.
        offset: [T + 1] int32, the pairs of tile `t` are `offset[t] : offset[t + 1]`;
            the last entry is the number of pairs. Lists that are not sorted by tile
            have T = 1.
    """

    page: jax.Array
    query: jax.Array
    offset: jax.Array

    @property
    def num_pairs(self) -> jax.Array:
        """[] int32, pairs in use."""
        return self.offset[-1]

    def shares(self, num_workers: int) -> jax.Array:
        """Return the bounds [W + 1] int32 of an even split of the pairs among workers.

        Worker `w` gets the pairs `bound[w] : bound[w + 1]`. Shares differ by one pair
        at most (DeFT section 3.3, flattened tree KV split): 7 pairs and 3 workers give
        0 3 5 7.
        """
        bound = jnp.arange(num_workers + 1, dtype=jnp.int32)
        each, rest = self.num_pairs // num_workers, self.num_pairs % num_workers
        return bound * each + jnp.minimum(bound, rest)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Grouping:
    """What one step's attention needs to know of the tree.

    Attributes:
        order: [Q] int32, row of the query with each rank; idle rows come last.
        rank: [Q] int32, rank of each row.
        query_position: [Q] int32, position along the path, by rank.
        slot_first: [M, P] int32, first rank that sees the token in the slot.
        slot_end: [M, P] int32, one past the last; equal to first where none does.
        slot_position: [M, P] int32, position of the token along its path.
        page_first: [M] int32, smallest `slot_first` of the page's seen tokens.
        page_end: [M] int32, largest `slot_end`; equal to first for pages unseen.
        num_live: [] int32, query tokens of the step; their ranks come first.
        wide: pairs of pages that many queries see, with tiles of `tile_queries`.
        narrow: pairs of pages that few queries see, one pair per query.
        tile_queries: static, queries per tile of `wide`.
    """

    order: jax.Array
    rank: jax.Array
    query_position: jax.Array
    slot_first: jax.Array
    slot_end: jax.Array
    slot_position: jax.Array
    page_first: jax.Array
    page_end: jax.Array
    num_live: jax.Array
    wide: WorkList
    narrow: WorkList
    tile_queries: int = dataclasses.field(metadata={"static": True})

    @property
    def num_queries(self) -> int:
        """`Q`, the capacity for query tokens."""
        return self.order.shape[0]


def default_tile_queries(num_queries: int) -> int:
    """Return the queries per tile: all of a small batch, else 64."""
    return min(num_queries, MAX_TILE_QUERIES)


def group(tree: Tree, slots: Slots, *, tile_queries: int | None = None) -> Grouping:
    """Group the query tokens of a step by the KV they share.

    Args:
        tree: the forest after `append`.
        slots: where the step's query tokens were put; idle rows get the last ranks and
            see nothing.
        tile_queries: queries per tile; by default chosen from the number of rows.

    Returns:
        Masks, order and work lists; every shape is a capacity.

    Raises:
        ValueError: `tile_queries` is no integer of at least 1.
    """
    number, rank = query_ranks(tree, slots.node)
    order = _inverse(rank)
    slot_first, slot_end = _see_slots(tree, slots, number)
    return _list_work(
        order=order,
        rank=rank,
        query_position=slots.position[order],
        slot_first=slot_first,
        slot_end=slot_end,
        slot_position=tree.slot_position,
        num_live=jnp.sum(slots.node < tree.num_nodes, dtype=jnp.int32),
        tile_queries=tile_queries,
    )


def group_arrays(
    slot_first: ArrayLike,
    slot_end: ArrayLike,
    slot_position: ArrayLike,
    query_position: ArrayLike,
    num_live: ArrayLike,
    *,
    tile_queries: int | None = None,
) -> Grouping:
    """Group queries by the KV they share, for engines with a page table of their own.

    The caller numbers the queries so that those which see a token have adjacent
    numbers, as a depth-first walk over its tree does; `order` and `rank` of the result
    are the identity. Integers of any type are taken; the arrays become int32, and
    ranges are cut to the live queries.

    Args:
        slot_first: [M, P], number of the first query that sees the token in the slot.
        slot_end: [M, P], one past the last; at most `slot_first` where none does.
        slot_position: [M, P], position of the token along its path.
        query_position: [Q], position of each query along its path.
        num_live: [], queries of the step; those numbered from there on see nothing.
        tile_queries: queries per tile; by default chosen from the number of queries.

    Returns:
        Masks and work lists; every shape is a capacity.

    Raises:
        ValueError: the arrays hold no integers, their shapes do not fit each other, or
            `tile_queries` is no integer of at least 1.
    """
    names = ("slot_first", "slot_end", "slot_position")
    values = (slot_first, slot_end, slot_position)
    slots = [as_int32(*pair) for pair in zip(names, values, strict=True)]
    query_position = as_int32("query_position", query_position)
    live = as_int32("num_live", num_live)
    shapes = [x.shape for x in slots]
    if slots[0].ndim != 2 or len(set(shapes)) > 1 or query_position.ndim != 1:
        raise ValueError(
            "slot_first, slot_end and slot_position must be [pages, page_size] and "
            f"query_position [queries], got {', '.join(map(str, shapes))} and "
            f"{query_position.shape}"
        )
    if live.ndim:
        raise ValueError(f"num_live must be one number, got the shape {live.shape}")
    rows = jnp.arange(query_position.shape[0], dtype=jnp.int32)
    return _list_work(
        order=rows,
        rank=rows,
        query_position=query_position,
        # The kernels pack a range in two times 16 bits: those of slots that nobody sees
        # may hold anything, so they become empty ranges.
        slot_first=jnp.clip(slots[0], 0, live),
        slot_end=jnp.clip(slots[1], jnp.clip(slots[0], 0, live), live),
        slot_position=slots[2],
        num_live=live,
        tile_queries=tile_queries,
    )


def _list_work(
    *,
    order,
    rank,
    query_position,
    slot_first,
    slot_end,
    slot_position,
    num_live,
    tile_queries,
) -> Grouping:
    """Return the grouping whose masks are known, with its work lists.

    Queries 0 1 2 3 in one tile, NARROW_SHARE 2; page 5 is seen by all, page 2 by query
    0, page 7 by queries 2 and 3, page 4 by none:

        page     2  4  5  7       page_order  2 5 7 4, those that are not seen last
        first    0  0  0  2       wide        page 5, for the tile that begins at 0
        end      1  0  4  4       narrow      pages 2 7 7, for the queries 0 2 3
    """
    num_queries = query_position.shape[0]
    if tile_queries is None:
        tile = default_tile_queries(num_queries)
    else:
        tile = whole_number("tile_queries", tile_queries)
    page_first, page_end = _see_pages(slot_first, slot_end)
    page_order = _order_pages(
        page_first, page_end, slot_position, slot_first < slot_end
    )
    narrow = (page_end - page_first) * NARROW_SHARE <= tile
    return Grouping(
        order=order,
        rank=rank,
        query_position=query_position,
        slot_first=slot_first,
        slot_end=slot_end,
        slot_position=slot_position,
        page_first=page_first,
        page_end=page_end,
        num_live=num_live,
        wide=_list_wide(page_order, page_first, page_end, narrow, num_queries, tile),
        narrow=_list_narrow(page_order, page_first, page_end, narrow, tile),
        tile_queries=tile,
    )


def query_ranks(tree: Tree, node: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the depth-first ranks of query tokens: by node, then by row.

        depth-first number of the row's node   2 0 2 N 1
        rank                                   2 0 3 4 1

    Args:
        tree: the forest.
        node: [Q] int32, node of each row, N for idle rows.

    Returns:
        number: [Q] int32, depth-first number of each row's node, N for idle rows.
        rank: [Q] int32, a permutation; idle rows come last.
    """
    size = tree.num_nodes
    number = tree.first[jnp.minimum(node, size - 1)]
    number = jnp.where(node < size, number, size)
    below = jnp.sum(number[None] < number[:, None], axis=1, dtype=jnp.int32)
    return number, below + earlier_equal(number, jnp.ones_like(node, bool))


def _inverse(rank: jax.Array) -> jax.Array:
    """Return the row [Q] int32 of each rank: 2 0 3 4 1 gives 1 4 0 2 3."""
    rows = jnp.arange(rank.shape[0], dtype=jnp.int32)
    if compares(rows.size, rows.size):
        here = rank[None] == rows[:, None]
        return jnp.sum(jnp.where(here, rows[None], 0), axis=1, dtype=jnp.int32)
    return jnp.zeros_like(rank).at[rank].set(rows, unique_indices=True)


def slot_ranges(tree: Tree, number: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return first and end [M, P] int32 of the ranks below each slot's node.

    A slot without a node has an empty range.

    Args:
        tree: the forest.
        number: [Q] int32, depth-first number of each row's node, N for idle rows.
    """
    first, end = _node_ranges(tree, number)
    return first[tree.slot_node], end[tree.slot_node]


def _node_ranges(tree: Tree, number):
    """Return first and end [N + 1] int32 of the ranks below each node.

    Entry N, the node of empty slots, has none. A node whose depth-first numbers are
    `first : end` holds the ranks of the rows with such numbers: as many ranks come
    before them as there are rows with a number below `first`.
    """
    first, end = (jnp.append(x, jnp.int32(0)) for x in (tree.first, tree.end))
    size = tree.num_nodes
    return count_below(number, first, size), count_below(number, end, size)


def _first_positions(tree: Tree, slots: Slots, number):
    """Return the position [N + 1] int32 of the first query token of each node.

    It is the largest int32 for nodes without a query token, and for the node of empty
    slots, entry N, which gets a number that no row has.
    """
    largest = jnp.iinfo(jnp.int32).max
    first = jnp.append(tree.first, jnp.int32(tree.num_nodes + 1))
    if compares(number.size, first.size):
        own = number[None] == first[:, None]
        return jnp.min(jnp.where(own, slots.position[None], largest), axis=1)
    position = jnp.full(tree.num_nodes + 2, largest)
    return position.at[number].min(slots.position)[first]


def _see_slots(tree: Tree, slots: Slots, number):
    """Return `Grouping.slot_first` and `slot_end`.

    The query tokens of a node are its last, in row order, so that their positions give
    their ranks. A node with tokens at positions 4 5 6 7, of which 6 and 7 are queries,
    and the ranks 3 4 below it:

        position                 4 5 6 7
        beyond the first query   0 0 0 1    position - 6, at least 0
        slot_first               3 3 3 4
        slot_end                 5 5 5 5
    """
    nodes = *_node_ranges(tree, number), _first_positions(tree, slots, number)
    # Computed once, not for each slot, whatever the compiler makes of few queries.
    first, end, position = (x[tree.slot_node] for x in lax.optimization_barrier(nodes))
    return first + jnp.maximum(tree.slot_position - position, 0), end


def _see_pages(slot_first, slot_end):
    """Return `Grouping.page_first` and `page_end`, over the page's seen tokens."""
    seen = slot_first < slot_end
    largest = jnp.iinfo(jnp.int32).max
    first = jnp.min(jnp.where(seen, slot_first, largest), axis=1)
    end = jnp.max(jnp.where(seen, slot_end, 0), axis=1)
    return jnp.minimum(first, end), end


def _order_pages(page_first, page_end, slot_position, seen):
    """Return the pages [M] int32 by first rank, then position; unseen ones last."""
    largest = jnp.iinfo(jnp.int32).max
    key = jnp.where(page_first < page_end, page_first, largest)
    page = jnp.arange(page_first.shape[0], dtype=jnp.int32)
    position = jnp.min(jnp.where(seen, slot_position, largest), axis=1)
    return lax.sort((key, position, page), num_keys=2)[2]


def _list_wide(page_order, page_first, page_end, narrow, num_queries, tile):
    """List every tile with the pages it sees, tile by tile in page order.

    Two tiles of 4 queries over pages 5 2 7 in page order, all of them wide:

        first, end of 5 2 7         0 8   0 4   4 8
        overlap, tile by tile       1 1 0   1 0 1
        upto, pairs before each     0 1 2   2 3 3  4
        page of each pair           5 2 5 7
        query of each pair          0 0 4 4
        offset, every third upto    0 2 4
    """
    num_tiles = -(-num_queries // tile)
    start = tile * jnp.arange(num_tiles, dtype=jnp.int32)[:, None]
    first, end = page_first[page_order][None], page_end[page_order][None]
    overlap = (first < start + tile) & (end > start) & ~narrow[page_order][None]
    upto = exclusive_cumsum(overlap.ravel().astype(jnp.int32))
    capacity = overlap.size
    at = jnp.where(overlap.ravel(), upto[:-1], capacity)

    def scatter(values):
        values = jnp.broadcast_to(values, overlap.shape).ravel()
        return jnp.zeros(capacity, jnp.int32).at[at].set(values, mode="drop")

    return WorkList(
        page=scatter(page_order[None]),
        query=scatter(start),
        offset=upto[:: page_order.shape[0]],
    )


def _list_narrow(page_order, page_first, page_end, narrow, tile):
    """List every page that few queries see, once per query.

    Pages 6 3 9 in page order, seen by the queries 0 1, by none and by 4 5 6:

        queries             2 0 3
        upto                0 2 2 5
        pair                0 1 2 3 4
        at, its page        0 0 2 2 2    the last entry with upto <= pair
        page                6 6 9 9 9
        query               0 1 4 5 6    first + pair - upto
    """
    most = max(tile // NARROW_SHARE, 1)
    first = page_first[page_order]
    queries = jnp.where(narrow[page_order], page_end[page_order] - first, 0)
    upto = exclusive_cumsum(queries)
    pair = jnp.arange(most * page_order.shape[0], dtype=jnp.int32)
    at = jnp.searchsorted(upto, pair, side="right").astype(jnp.int32) - 1
    at = jnp.clip(at, 0, page_order.shape[0] - 1)
    return WorkList(
        page=page_order[at],
        query=first[at] + pair - upto[at],
        offset=jnp.stack([jnp.int32(0), upto[-1]]),
    )
