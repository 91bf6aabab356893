"""Pairs of a page and the queries that see it: what is left to attend to."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from deft_jax.tree.counting import exclusive_cumsum

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


def order_pages(page_first, page_end, slot_position, seen):
    """Return the pages [M] int32 by first rank, then position; unseen ones last."""
    largest = jnp.iinfo(jnp.int32).max
    key = jnp.where(page_first < page_end, page_first, largest)
    page = jnp.arange(page_first.shape[0], dtype=jnp.int32)
    position = jnp.min(jnp.where(seen, slot_position, largest), axis=1)
    return lax.sort((key, position, page), num_keys=2)[2]


def list_wide(page_order, page_first, page_end, narrow, num_queries, tile):
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


def list_narrow(page_order, page_first, page_end, narrow, tile):
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
