"""The decoding tree: a forest of nodes whose tokens live in pages, all on the device.

Every array has a capacity as its shape: `N` nodes, `M` pages of `P` token slots. Nodes
are numbered in depth-first order by `first` and `end`: the subtree of `x` is the nodes
`y` with `first[x] <= first[y] < end[x]`. Branching and pruning shift these numbers with
prefix sums, so that no operation walks the tree and none moves a token's KV.

Two sentinels: `NO_NODE` (-1) is compared with (a root has no parent); the capacity, `N`
or `M`, marks a free slot or an idle row in arrays that are used as scatter indices,
where mode="drop" ignores it.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deft_jax.tree.counting import count_nodes_below, earlier_equal, largest

NO_NODE = -1
"""Parent of a root; "no node" wherever node numbers are compared."""

OUT_OF_NODES = 1
"""Bit of `Tree.overflow`: a branch did not find enough free nodes."""

OUT_OF_PAGES = 2
"""Bit of `Tree.overflow`: an append did not find enough free pages."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tree:
    """State of a forest. Free nodes and pages are kept as stacks.

    Attributes:
        parent: [N] int32, parent node, NO_NODE for roots and free nodes.
        first: [N] int32, depth-first number of a live node, N for free nodes.
        end: [N] int32, one past the depth-first number of the subtree's last node.
        count: [N] int32, tokens in the node.
        start: [N] int32, position along the path of the node's first token.
        storage: [N] int32, node that owns the pages with this node's tokens: itself,
            or for a draft the nearest ancestor that is none; N for free nodes.
        page_owner: [M] int32, node that owns the page, N for free pages.
        slot_node: [M, P] int32, node of the token in the slot, N for empty slots.
        slot_position: [M, P] int32, position of that token along its path.
        slot_token: [M, P] int32, token id.
        free_nodes: [N] int32, the first `num_free_nodes` are free.
        num_free_nodes: [] int32.
        free_pages: [M] int32, the first `num_free_pages` are free.
        num_free_pages: [] int32.
        overflow: [] int32, bits OUT_OF_NODES and OUT_OF_PAGES of what was refused.
    """

    parent: jax.Array
    first: jax.Array
    end: jax.Array
    count: jax.Array
    start: jax.Array
    storage: jax.Array
    page_owner: jax.Array
    slot_node: jax.Array
    slot_position: jax.Array
    slot_token: jax.Array
    free_nodes: jax.Array
    num_free_nodes: jax.Array
    free_pages: jax.Array
    num_free_pages: jax.Array
    overflow: jax.Array

    @classmethod
    def create(cls, num_nodes: int, num_pages: int, page_size: int) -> "Tree":
        """An empty forest.

        Raises:
            ValueError: a capacity is below 1.
        """
        for name, value in [
            ("num_nodes", num_nodes),
            ("num_pages", num_pages),
            ("page_size", page_size),
        ]:
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

        def nodes(value):
            return jnp.full(num_nodes, value, jnp.int32)

        def slots(value):
            return jnp.full((num_pages, page_size), value, jnp.int32)

        return cls(
            parent=nodes(NO_NODE),
            first=nodes(num_nodes),
            end=nodes(num_nodes),
            count=nodes(0),
            start=nodes(0),
            storage=nodes(num_nodes),
            page_owner=jnp.full(num_pages, num_nodes, jnp.int32),
            slot_node=slots(num_nodes),
            slot_position=slots(0),
            slot_token=slots(0),
            free_nodes=jnp.arange(num_nodes, dtype=jnp.int32)[::-1],
            num_free_nodes=jnp.int32(num_nodes),
            free_pages=jnp.arange(num_pages, dtype=jnp.int32)[::-1],
            num_free_pages=jnp.int32(num_pages),
            overflow=jnp.int32(0),
        )

    @property
    def num_nodes(self) -> int:
        """`N`, the most nodes that can live at once."""
        return self.parent.shape[0]

    @property
    def num_pages(self) -> int:
        """`M`, the pages of the pool."""
        return self.slot_node.shape[0]

    @property
    def page_size(self) -> int:
        """`P`, the token slots of a page."""
        return self.slot_node.shape[1]

    @property
    def live(self) -> jax.Array:
        """[N] bool, true for nodes in use."""
        return self.first < self.num_nodes

    @property
    def page_fill(self) -> jax.Array:
        """[M] int32, tokens in each page."""
        return jnp.sum(self.slot_node < self.num_nodes, axis=1, dtype=jnp.int32)


def replace(tree: Tree, **changes) -> Tree:
    """`dataclasses.replace` under a short name."""
    return dataclasses.replace(tree, **changes)


def choose(condition: jax.Array, yes, no):
    """`jnp.where` over two pytrees of one structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


class NewNodes(NamedTuple):
    """Empty nodes to put into a tree, one per row.

    Attributes:
        node: [B] int32, number of the node, N for rows without one.
        parent: [B] int32, a live or a new node; NO_NODE for roots.
        before: [B] int32, depth-first number of the nearest ancestor that is not new,
            as it is before the new ones come in; -1 for none.
        offset: [B] int32, place among the new nodes below that ancestor, from 1.
        span: [B] int32, new nodes in its subtree, itself counted.
        start: [B] int32, as in `Tree`.
        storage: [B] int32, as in `Tree`.
    """

    node: jax.Array
    parent: jax.Array
    before: jax.Array
    offset: jax.Array
    span: jax.Array
    start: jax.Array
    storage: jax.Array


def take_nodes(
    tree: Tree, mask: jax.Array, index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Numbers for new nodes: the free node `index` places below the top of the stack.

    Args:
        tree: the forest.
        mask: [B] bool, rows that get one.
        index: [B] int32, their order: 0, 1, ...

    Returns:
        [B] int32 numbers, N for the other rows; if too few are free all are N, and the
        tree's overflow, [] int32, has its bit.
    """
    fits = jnp.sum(mask, dtype=jnp.int32) <= tree.num_free_nodes
    free = tree.free_nodes[tree.num_free_nodes - 1 - index]
    node = jnp.where(mask & fits, free, tree.num_nodes)
    return node, tree.overflow | jnp.where(fits, 0, OUT_OF_NODES)


def insert(tree: Tree, new: NewNodes) -> Tree:
    """The tree with new nodes, taken off the free list.

    Every node looks its row up and all arrays change in one kernel of a GPU, where a
    scatter for each of them takes one or two.
    """
    size = tree.num_nodes
    live = new.node < size
    number = jnp.where(live, new.before + 1, size + 1)

    def moved(bound):
        return bound + count_nodes_below(number, bound + 1, size + 1)

    first = moved(new.before) + new.offset
    rows = jnp.arange(new.node.shape[0], dtype=jnp.int32)
    row = largest(new.node, size, rows)

    def put(array, value):
        return jnp.where(row >= 0, value[jnp.maximum(row, 0)], array)

    return replace(
        tree,
        parent=put(tree.parent, new.parent),
        first=put(jnp.minimum(moved(tree.first), size), first),
        end=put(jnp.minimum(moved(tree.end), size), first + new.span),
        count=jnp.where(row >= 0, 0, tree.count),
        start=put(tree.start, new.start),
        storage=put(tree.storage, new.storage),
        num_free_nodes=tree.num_free_nodes - jnp.sum(live, dtype=jnp.int32),
    )


def branch(
    tree: Tree, parent: jax.Array, mask: jax.Array, draft: jax.Array | None = None
) -> tuple[Tree, jax.Array]:
    """Adds one empty child per row; nothing is copied.

    A node must not grow once it has children that are no drafts: their positions start
    where it ended when they were made.

    Args:
        tree: the forest.
        parent: [B] int32, live node that each row branches from; NO_NODE makes a root.
        mask: [B] bool, true for rows that take part.
        draft: [B] bool, true for nodes whose tokens are stored in the pages of their
            nearest ancestor that is no draft, until `accept` or `prune`; none if None.

    Returns:
        The tree and [B] int32 the new nodes, N for rows that took no part. If too few
        nodes are free the tree is as it was but for its overflow bit, and all are N.
    """
    index = jnp.cumsum(mask, dtype=jnp.int32) - 1
    node, overflow = take_nodes(tree, mask, index)
    is_root = parent < 0
    safe = jnp.clip(parent, 0, tree.num_nodes - 1)
    before = jnp.where(is_root, -1, tree.first[safe])
    storage = node
    if draft is not None:
        storage = jnp.where(draft & ~is_root, tree.storage[safe], node)
    new = NewNodes(
        node=node,
        parent=jnp.where(is_root, NO_NODE, parent),
        before=before,
        offset=1 + earlier_equal(before, mask),
        span=jnp.ones_like(node),
        start=jnp.where(is_root, 0, tree.start[safe] + tree.count[safe]),
        storage=storage,
    )
    return replace(insert(tree, new), overflow=overflow), node
