"""Appending tokens to nodes: which page and slot each new token's KV goes to."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deft_jax.tree import OUT_OF_PAGES, Tree, earlier_equal, replace, sum_before


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Where the query tokens of a step live, one row per query token.

    Attributes:
        node: [Q] int32, node the token was appended to, N for idle rows.
        page: [Q] int32, page of its KV, M for idle rows.
        slot: [Q] int32, slot within the page, 0 for idle rows.
        position: [Q] int32, position along the token's path, 0 for idle rows.
    """

    node: jax.Array
    page: jax.Array
    slot: jax.Array
    position: jax.Array


def append(tree: Tree, node: jax.Array, token: jax.Array) -> tuple[Tree, Slots]:
    """Appends one token per row to its node, in row order within a node.

    Empty slots of the storage node's pages are filled first (a page is left with holes
    only by `accept`), then pages are taken from the free list.

    Args:
        tree: the forest.
        node: [Q] int32, live node of each row, N for idle rows. A node with children
            that are no drafts must not grow.
        token: [Q] int32, token ids.

    Returns:
        The tree and the slots. If there are too few free pages the tree is as it was
        but for its overflow bit, and every row is idle.
    """
    size, num_pages = tree.num_nodes, tree.num_pages
    place = _find_places(tree, node)
    fits = place.needed <= tree.num_free_pages
    live = (node < size) & fits
    page = jnp.where(live, place.page, num_pages)
    slot = jnp.where(live, place.slot, 0)
    node = jnp.where(live, node, size)
    safe = jnp.minimum(node, size - 1)
    ahead = earlier_equal(node, live)
    position = jnp.where(live, tree.start[safe] + tree.count[safe] + ahead, 0)
    opened = jnp.where(place.opened & fits, place.page, num_pages)

    def put(array, value):
        return array.at[page, slot].set(value, mode="drop")

    grown = replace(
        tree,
        count=tree.count.at[node].add(1, mode="drop"),
        page_owner=tree.page_owner.at[opened].set(place.storage, mode="drop"),
        slot_node=put(tree.slot_node, node),
        slot_position=put(tree.slot_position, position),
        slot_token=put(tree.slot_token, token),
        num_free_pages=tree.num_free_pages - jnp.where(fits, place.needed, 0),
        overflow=tree.overflow | jnp.where(fits, 0, OUT_OF_PAGES),
    )
    return grown, Slots(node=node, page=page, slot=slot, position=position)


def has_room(tree: Tree, node: jax.Array) -> jax.Array:
    """[] bool: whether there are pages enough to `append` to `node` [Q]."""
    return _find_places(tree, node).needed <= tree.num_free_pages


class _Places(NamedTuple):
    """Where tokens go if there are pages enough.

    Attributes:
        storage: [Q] int32, node that owns the page, N for idle rows.
        page: [Q] int32.
        slot: [Q] int32.
        opened: [Q] bool, true for the first row of each page from the free list.
        needed: [] int32, such pages.
    """

    storage: jax.Array
    page: jax.Array
    slot: jax.Array
    opened: jax.Array
    needed: jax.Array


def _find_places(tree: Tree, node: jax.Array) -> _Places:
    size = tree.num_nodes
    live = node < size
    storage = jnp.where(live, tree.storage[jnp.minimum(node, size - 1)], size)
    nth = earlier_equal(storage, live)
    old_page, old_slot, spare = _find_hole(tree, storage, nth)
    new_page, new_slot, opened, needed = _take_page(tree, storage, nth - spare, live)
    reuse = nth < spare
    return _Places(
        storage=storage,
        page=jnp.where(reuse, old_page, new_page),
        slot=jnp.where(reuse, old_slot, new_slot),
        opened=opened,
        needed=needed,
    )


def _find_hole(tree: Tree, storage: jax.Array, nth: jax.Array):
    """The `nth` empty slot in the pages of each row's storage node, if there is one.

    Pages and slots are compared with every row: few kernels of a GPU, where sorting and
    searching take dozens.

    Returns:
        page [Q], slot [Q] and spare [Q], the empty slots of the row's storage node.
    """
    size = tree.num_nodes
    own = (tree.page_owner[None] == storage[:, None]) & (storage < size)[:, None]
    empty = jnp.where(own, tree.page_size - tree.page_fill[None], 0)
    upto = jnp.cumsum(empty, axis=1, dtype=jnp.int32)
    before = upto - empty
    here = (before <= nth[:, None]) & (nth[:, None] < upto)
    index = jnp.arange(tree.num_pages, dtype=jnp.int32)
    page = jnp.sum(jnp.where(here, index, 0), axis=1, dtype=jnp.int32)
    inside = nth - jnp.sum(jnp.where(here, before, 0), axis=1, dtype=jnp.int32)
    hole = tree.slot_node[page] == size
    wanted = hole & (sum_before(hole) == inside[:, None])
    return page, jnp.argmax(wanted, axis=1).astype(jnp.int32), upto[:, -1]


def _take_page(tree: Tree, storage: jax.Array, nth: jax.Array, live: jax.Array):
    """The `nth` slot of each row's storage node in pages fresh from the free list.

    Returns:
        page [Q], slot [Q], opened [Q] bool, true for the first row of each fresh page,
        and needed [], the pages that are taken.
    """
    fresh = live & (nth >= 0)
    slot = nth % tree.page_size
    opened = fresh & (slot == 0)
    # The page of a row is the one its storage node's row with the same nth // P opened.
    nth_page = nth // tree.page_size
    same = (storage[:, None] == storage[None]) & (nth_page[:, None] == nth_page[None])
    ordinal = jnp.where(same & opened[None], sum_before(opened)[None], 0)
    ordinal = jnp.sum(ordinal, axis=1, dtype=jnp.int32)
    page = tree.free_pages[jnp.maximum(tree.num_free_pages - 1 - ordinal, 0)]
    return page, slot, opened, jnp.sum(opened, dtype=jnp.int32)
