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
from jax.typing import ArrayLike

from deft_jax.attention.checks import as_int32, whole_number
from deft_jax.attention.query_ranges import query_ranks, see_slots
from deft_jax.attention.work_lists import (
    NARROW_SHARE,
    WorkList,
    list_narrow,
    list_wide,
    order_pages,
)
from deft_jax.tree.appending import Slots
from deft_jax.tree.counting import compares
from deft_jax.tree.state import Tree

MAX_TILE_QUERIES = 64
"""Queries per tile of a large batch."""


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
    slot_first, slot_end = see_slots(tree, slots, number)
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
    page_order = order_pages(page_first, page_end, slot_position, slot_first < slot_end)
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
        wide=list_wide(page_order, page_first, page_end, narrow, num_queries, tile),
        narrow=list_narrow(page_order, page_first, page_end, narrow, tile),
        tile_queries=tile,
    )


def _inverse(rank: jax.Array) -> jax.Array:
    """Return the row [Q] int32 of each rank: 2 0 3 4 1 gives 1 4 0 2 3."""
    rows = jnp.arange(rank.shape[0], dtype=jnp.int32)
    if compares(rows.size, rows.size):
        here = rank[None] == rows[:, None]
        return jnp.sum(jnp.where(here, rows[None], 0), axis=1, dtype=jnp.int32)
    return jnp.zeros_like(rank).at[rank].set(rows, unique_indices=True)


def _see_pages(slot_first, slot_end):
    """Return `Grouping.page_first` and `page_end`, over the page's seen tokens."""
    seen = slot_first < slot_end
    largest = jnp.iinfo(jnp.int32).max
    first = jnp.min(jnp.where(seen, slot_first, largest), axis=1)
    end = jnp.max(jnp.where(seen, slot_end, 0), axis=1)
    return jnp.minimum(first, end), end
