"""Appending tokens to nodes: which page and slot each new token's KV goes to."""

import dataclasses

import jax
import jax.numpy as jnp

from deft_jax.tree.counting import earlier_equal, sum_before
from deft_jax.tree.state import OUT_OF_PAGES, Tree, replace


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
    """Append one token per row to its node, in row order within a node.

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
    places = find_places(tree, storage_of(tree, node), node < tree.num_nodes)
    fits = places.fit(tree)
    tree = replace(tree, overflow=tree.overflow | jnp.where(fits, 0, OUT_OF_PAGES))
    return fill(tree, node, token, places, fits)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
    """Where the tokens of a step go if there are pages enough.

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

    def fit(self, tree: Tree) -> jax.Array:
        """[] bool: whether the tree has pages enough."""
        return self.needed <= tree.num_free_pages


def storage_of(tree: Tree, node: jax.Array) -> jax.Array:
    """[Q] int32: node that owns the pages of each node [Q]; N for N."""
    size = tree.num_nodes
    return jnp.where(node < size, tree.storage[jnp.minimum(node, size - 1)], size)


def find_places(tree: Tree, storage: jax.Array, live: jax.Array) -> Places:
    """Where one token per row goes, in row order within a storage node.

    Args:
        tree: the forest; its pages alone are read.
        storage: [Q] int32, node that owns the pages of each row, N for idle rows.
        live: [Q] bool, false for idle rows.
    """
    nth = earlier_equal(storage, live)
    old_page, old_slot, spare = _find_hole(tree, storage, nth)
    new_page, new_slot, opened, needed = _take_page(tree, storage, nth - spare, live)
    reuse = nth < spare
    return Places(
        storage=storage,
        page=jnp.where(reuse, old_page, new_page),
        slot=jnp.where(reuse, old_slot, new_slot),
        opened=opened,
        needed=needed,
    )


def fill(
    tree: Tree, node: jax.Array, token: jax.Array, places: Places, fits: jax.Array
) -> tuple[Tree, Slots]:
    """Put the tokens of a step where there is room for them.

    Args:
        tree: the forest.
        node: [Q] int32, as for `append`.
        token: [Q] int32.
        places: of these rows.
        fits: [] bool; false leaves the tree as it is and every row idle.
    """
    size, num_pages = tree.num_nodes, tree.num_pages
    live = (node < size) & fits
    node = jnp.where(live, node, size)
    page = jnp.where(live, places.page, num_pages)
    slot = jnp.where(live, places.slot, 0)
    safe = jnp.minimum(node, size - 1)
    ahead = earlier_equal(node, live)
    position = jnp.where(live, tree.start[safe] + tree.count[safe] + ahead, 0)
    opened = jnp.where(places.opened & fits, places.page, num_pages)

    def put(array, value):
        return array.at[page, slot].set(value, mode="drop")

    grown = replace(
        tree,
        count=tree.count.at[node].add(1, mode="drop"),
        page_owner=tree.page_owner.at[opened].set(places.storage, mode="drop"),
        slot_node=put(tree.slot_node, node),
        slot_position=put(tree.slot_position, position),
        slot_token=put(tree.slot_token, token),
        num_free_pages=tree.num_free_pages - jnp.where(fits, places.needed, 0),
    )
    return grown, Slots(node=node, page=page, slot=slot, position=position)


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
