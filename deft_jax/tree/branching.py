"""Branching: new nodes come into the depth-first order, and nothing is copied."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from deft_jax.tree.counting import count_nodes_below, earlier_equal, largest
from deft_jax.tree.state import NO_NODE, OUT_OF_NODES, Tree, replace


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
    """Add one empty child per row; nothing is copied.

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
