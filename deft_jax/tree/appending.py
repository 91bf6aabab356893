"""Appending tokens to nodes: which page and slot each new token's KV goes to."""

import dataclasses

import jax
import jax.numpy as jnp

from deft_jax.tree.arguments import integers
from deft_jax.tree.counting import count_nodes_below, earlier_equal, sum_before
from deft_jax.tree.state import OUT_OF_ORDER, OUT_OF_PAGES, Tree, replace


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

    Empty slots of the pages of the node's storage are filled first, those that `accept`
    and `prune` left and those behind its last token; then pages are taken from the free
    list. Nodes below
    a node that grows move on by as many positions, so several levels of new nodes may
    get their tokens in one call. They must be empty before it, as tokens that have KV
    cannot move: otherwise nothing is appended.

    Args:
        tree: the forest.
        node: [Q] int32, node of each row; a number that is no live node (NO_NODE, N, a
            node that was pruned) makes the row idle.
        token: [Q] int32, token ids.

    Returns:
        The tree and the slots. If there are too few free pages, or if there are tokens
        below a node that would grow, then the tree is as it was but for its overflow
        bit (OUT_OF_PAGES, OUT_OF_ORDER), and every row is idle.

    Raises:
        DeftError: the arrays are no integers of one length.
    """
    node = integers("node", node, "Q")
    token = integers("token", token, node.shape[0])
    storage = storage_of(tree, node)
    node = jnp.where(storage < tree.num_nodes, node, tree.num_nodes)
    next_slots = find_next_slots(tree, storage)
    moved = _count_above(tree, node)
    in_order = ~jnp.any((moved > 0) & (tree.count > 0))
    fits = next_slots.fit(tree)
    overflow = jnp.where(fits, 0, OUT_OF_PAGES) | jnp.where(in_order, 0, OUT_OF_ORDER)
    fits &= in_order
    tree = replace(
        tree,
        start=tree.start + jnp.where(fits, moved, 0),
        overflow=tree.overflow | overflow,
    )
    return fill(tree, node, token, next_slots, fits)


def append_at_starts(
    tree: Tree, node: jax.Array, token: jax.Array, depth_first: bool = False
) -> tuple[Tree, Slots]:
    """Append as `append` does, where the starts of all nodes are right already.

    No node moves: there is none below those that grow, or `branch_rows` has counted
    the tokens they get. For the decode loop, which has made sure of it; neither nodes
    below nor the arguments are looked at.

    Args:
        tree: the forest.
        node: [Q] int32, live node of each row, N for idle rows.
        token: [Q] int32, token ids.
        depth_first: static; see `find_next_slots`.
    """
    by = node if depth_first else None
    next_slots = find_next_slots(tree, storage_of(tree, node), by)
    fits = next_slots.fit(tree)
    tree = replace(tree, overflow=tree.overflow | jnp.where(fits, 0, OUT_OF_PAGES))
    return fill(tree, node, token, next_slots, fits)


def _count_above(tree: Tree, node: jax.Array) -> jax.Array:
    """Return [N] int32, how many rows add a token to an ancestor of each node.

    These are the rows whose subtree has begun before the node and has not ended.

        node            A B C     A above B and C
        first, end      0 3, 1 2, 2 3
        rows A A B  ->  0 2 2     of C: begun 0 0 1 < 2, ended 2 < 3: 3 - 1
    """
    size = tree.num_nodes
    begins = tree.first.at[node].get(mode="fill", fill_value=size + 1)
    ends = tree.end.at[node].get(mode="fill", fill_value=size + 1)
    begun = count_nodes_below(begins, tree.first, size + 1)
    return begun - count_nodes_below(ends, tree.first + 1, size + 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NextSlots:
    """Where the tokens of a step go if there are pages enough.

    Attributes:
        storage: [Q] int32, node whose page it is, N for idle rows.
        page: [Q] int32, page of the token's KV.
        slot: [Q] int32, slot within the page.
        opened: [Q] bool, true for the first row of each page from the free list.
        needed: [] int32, pages from the free list.
    """

    storage: jax.Array
    page: jax.Array
    slot: jax.Array
    opened: jax.Array
    needed: jax.Array

    def fit(self, tree: Tree) -> jax.Array:
        """Return [] bool, whether the tree has pages enough."""
        return self.needed <= tree.num_free_pages


def storage_of(tree: Tree, node: jax.Array) -> jax.Array:
    """Return [Q] int32, the node into whose pages the tokens of each node [Q] go.

    It is N for all numbers that are no live node.
    """
    safe = jnp.clip(node, 0, tree.num_nodes - 1)
    return jnp.where(node == safe, tree.storage[safe], tree.num_nodes)


def find_next_slots(
    tree: Tree, storage: jax.Array, node: jax.Array | None = None
) -> NextSlots:
    """Return where one token per row goes.

    Args:
        tree: the forest.
        storage: [Q] int32, node into whose pages each row's goes, N for idle rows.
        node: [Q] int32, nodes of the rows, by whose depth-first numbers those of one
            storage are put in order; in row order if None. Tokens that lie side by side
            are then seen by queries side by side, now and later: a tile of queries sees
            fewer pages where many branches share them.
    """
    live = storage < tree.num_nodes
    if node is None:
        nth = earlier_equal(storage, live)
    else:
        nth = _count_before(tree, storage, node, live)
    old_page, old_slot, spare = _find_hole(tree, storage, nth)
    new_page, new_slot, opened, needed = _take_page(tree, storage, nth - spare, live)
    reuse = nth < spare
    return NextSlots(
        storage=storage,
        page=jnp.where(reuse, old_page, new_page),
        slot=jnp.where(reuse, old_slot, new_slot),
        opened=opened,
        needed=needed,
    )


def _count_before(tree: Tree, storage, node, live) -> jax.Array:
    """Return [Q] int32, live rows of the same storage that are depth-first before.

    storage 5 5 7 5, depth-first number 8 6 3 6  ->  2 0 0 1
    """
    number = tree.first[jnp.minimum(node, tree.num_nodes - 1)]
    rows = jnp.arange(node.shape[0], dtype=jnp.int32)
    before = number[None] < number[:, None]
    before |= (number[None] == number[:, None]) & (rows[None] < rows[:, None])
    before &= live[None] & (storage[None] == storage[:, None])
    return jnp.sum(before, axis=1, dtype=jnp.int32)


def fill(
    tree: Tree, node: jax.Array, token: jax.Array, next_slots: NextSlots, fits
) -> tuple[Tree, Slots]:
    """Put the tokens of a step where there is room for them.

    Args:
        tree: the forest.
        node: [Q] int32, live node of each row, N for idle rows.
        token: [Q] int32, token ids.
        next_slots: where these rows go.
        fits: [] bool, false leaves the tree as it is and every row idle.

    Returns:
        The tree and the slots of the rows.
    """
    size, num_pages = tree.num_nodes, tree.num_pages
    live = (node < size) & fits
    node = jnp.where(live, node, size)
    page = jnp.where(live, next_slots.page, num_pages)
    slot = jnp.where(live, next_slots.slot, 0)
    safe = jnp.minimum(node, size - 1)
    ahead = earlier_equal(node, live)
    position = jnp.where(live, tree.start[safe] + tree.count[safe] + ahead, 0)
    opened = jnp.where(next_slots.opened & fits, next_slots.page, num_pages)

    def put(array, value):
        return array.at[page, slot].set(value, mode="drop")

    grown = replace(
        tree,
        count=tree.count.at[node].add(1, mode="drop"),
        page_owner=tree.page_owner.at[opened].set(next_slots.storage, mode="drop"),
        slot_node=put(tree.slot_node, node),
        slot_position=put(tree.slot_position, position),
        slot_token=put(tree.slot_token, token),
        num_free_pages=tree.num_free_pages - jnp.where(fits, next_slots.needed, 0),
    )
    return grown, Slots(node=node, page=page, slot=slot, position=position)


def _find_hole(tree: Tree, storage: jax.Array, nth: jax.Array):
    """Find the `nth` empty slot in the pages of each row's storage node.

    Pages and slots are compared with every row: few kernels of a GPU, where sorting and
    searching take dozens.

        pages of node 5    x x . x    x . . .    between them one of another node
        empty              1     0     3         first_empty 0 1 1, then 4 in all
        nth 0  ->  page 0, slot 2     nth 2  ->  page 2, slot 2, its empty slot 1

    Returns:
        page [Q], slot [Q] and spare [Q], the empty slots of the row's storage node.
        Page and slot mean something where `nth < spare` only.
    """
    size = tree.num_nodes
    own = (tree.page_owner[None] == storage[:, None]) & (storage < size)[:, None]
    empty = jnp.where(own, tree.page_size - tree.page_fill[None], 0)
    end_empty = jnp.cumsum(empty, axis=1, dtype=jnp.int32)
    first_empty = end_empty - empty
    is_here = (first_empty <= nth[:, None]) & (nth[:, None] < end_empty)
    index = jnp.arange(tree.num_pages, dtype=jnp.int32)
    page = jnp.sum(jnp.where(is_here, index, 0), axis=1, dtype=jnp.int32)
    skipped = jnp.sum(jnp.where(is_here, first_empty, 0), axis=1, dtype=jnp.int32)
    is_hole = tree.slot_node[page] == size
    is_wanted = is_hole & (sum_before(is_hole) == (nth - skipped)[:, None])
    return page, jnp.argmax(is_wanted, axis=1).astype(jnp.int32), end_empty[:, -1]


def _take_page(tree: Tree, storage: jax.Array, nth: jax.Array, live: jax.Array):
    """Find the `nth` slot of each row's storage node in pages from the free list.

    A row's page is the one that the first row of the same storage node and the same
    `nth // P` opens; pages are taken from the top of the list in the order of these.

        P = 2, storage    5  5  5  7  5
        nth              -1  0  1  0  2      negative: the row goes to a hole
        slot              .  0  1  0  0
        opened            0  1  0  1  1
        ordinal           .  0  0  1  2      page: free_pages[num_free_pages - 1 - ...]

    Returns:
        page [Q], slot [Q], opened [Q] bool, true for the first row of each page, and
        needed [], the pages that are taken.
    """
    fresh = live & (nth >= 0)
    slot = nth % tree.page_size
    opened = fresh & (slot == 0)
    nth_page = nth // tree.page_size
    same = (storage[:, None] == storage[None]) & (nth_page[:, None] == nth_page[None])
    ordinal = jnp.where(same & opened[None], sum_before(opened)[None], 0)
    ordinal = jnp.sum(ordinal, axis=1, dtype=jnp.int32)
    page = tree.free_pages[jnp.maximum(tree.num_free_pages - 1 - ordinal, 0)]
    return page, slot, opened, jnp.sum(opened, dtype=jnp.int32)
