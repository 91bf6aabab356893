"""Branching: new nodes come into the depth-first order, and nothing is copied."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from deft_jax.tree.arguments import integers, masks
from deft_jax.tree.counting import count_nodes_below, earlier_equal, largest
from deft_jax.tree.state import NO_NODE, OUT_OF_NODES, Tree, replace


class NewNodes(NamedTuple):
    """Empty nodes to put into a tree, one per row.

    Attributes:
        node: [B] int32, number of the node, N for rows without one.
        parent: [B] int32, a live or a new node; NO_NODE for roots.
        anchor_number: [B] int32, depth-first number that the nearest ancestor which is
            not new has before the new ones come in; -1 for none.
        offset: [B] int32, how far behind that ancestor the node comes, counted in new
            nodes, from 1.
        span: [B] int32, new nodes in its subtree, itself counted.
        start: [B] int32, position of its first token.
        trunk: [B] int32, itself, or for a draft the nearest ancestor that is none.
        storage: [B] int32, node into whose pages its tokens go.
    """

    node: jax.Array
    parent: jax.Array
    anchor_number: jax.Array
    offset: jax.Array
    span: jax.Array
    start: jax.Array
    trunk: jax.Array
    storage: jax.Array


def take_nodes(
    tree: Tree, mask: jax.Array, index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return numbers for new nodes, from the top of the stack of free ones.

    Args:
        tree: the forest.
        mask: [B] bool, true for rows that get one.
        index: [B] int32, how far below the top: 0, 1, ... in the order of the rows.

    Returns:
        [B] int32 numbers, N for the other rows; if too few are free all are N, and the
        tree's overflow, [] int32, has its bit.
    """
    fits = jnp.sum(mask, dtype=jnp.int32) <= tree.num_free_nodes
    free = tree.free_nodes[tree.num_free_nodes - 1 - index]
    node = jnp.where(mask & fits, free, tree.num_nodes)
    return node, tree.overflow | jnp.where(fits, 0, OUT_OF_NODES)


def insert(tree: Tree, new: NewNodes) -> Tree:
    """Return the tree with new nodes, taken off the free list.

    New nodes come right behind their anchor, the nearest ancestor that is not new. A
    bound of an old subtree moves on by the new nodes whose anchor is before it:

        old nodes A B C    first 0 1 2, end 3 2 3     B and C are below A
        new D below A      anchor_number 0            comes in at 1
        new E below B      anchor_number 1            comes in at 2, moved by D to 3
        A D B E C          first 0 1 2 3 4, end 5 2 4 4 5

    Every node looks its row up and all arrays change in one kernel of a GPU, where a
    scatter for each of them takes one or two.
    """
    size = tree.num_nodes
    live = new.node < size
    comes_in_at = jnp.where(live, new.anchor_number + 1, size + 1)

    def moved(bound):
        return bound + count_nodes_below(comes_in_at, bound + 1, size + 1)

    first = moved(new.anchor_number) + new.offset
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
        trunk=put(tree.trunk, new.trunk),
        storage=put(tree.storage, new.storage),
        num_free_nodes=tree.num_free_nodes - jnp.sum(live, dtype=jnp.int32),
    )


def branch(
    tree: Tree,
    parent: jax.Array,
    mask: jax.Array,
    draft: jax.Array | None = None,
    shares: jax.Array | None = None,
) -> tuple[Tree, jax.Array]:
    """Add one empty child per row; nothing is copied.

    Children may be made before their parents have their tokens: `append` moves nodes
    below one that grows, as long as they are empty. A node with tokens below it must
    not grow any more, and `append` refuses to.

    Args:
        tree: the forest.
        parent: [B] int32, live node that each row branches from; NO_NODE makes a root;
            with any other number the row takes no part.
        mask: [B] bool, true for rows that take part.
        draft: [B] bool, true for nodes to be accepted or dropped later, which share the
            pages of their parent; none if None.
        shares: [B] bool, true for other nodes that share the pages of their parent:
            their tokens fill the empty slots of these first. It suits many short
            branches, as those of a beam; a long branch in pages of its own leaves whole
            pages free when it is pruned. None if None. A root shares nothing.

    Returns:
        The tree and [B] int32 the new nodes, N for rows that took no part. If too few
        nodes are free the tree is as it was but for its overflow bit, and all are N.

    Raises:
        DeftError: `parent` is no integers, or a mask no bool of its length.
    """
    parent = integers("parent", parent, "B")
    mask = masks("mask", mask, parent.shape[0])
    is_root = parent == NO_NODE
    safe = jnp.clip(parent, 0, tree.num_nodes - 1)
    anchor_number = jnp.where(is_root, -1, tree.first[safe])
    mask &= is_root | ((parent == safe) & (anchor_number < tree.num_nodes))
    node, overflow = take_nodes(tree, mask, jnp.cumsum(mask, dtype=jnp.int32) - 1)
    trunk = storage = node
    if draft is not None:
        draft = masks("draft", draft, parent.shape[0]) & ~is_root
        trunk = jnp.where(draft, tree.trunk[safe], node)
        storage = jnp.where(draft, tree.storage[safe], node)
    if shares is not None:
        shares = masks("shares", shares, parent.shape[0]) & ~is_root
        storage = jnp.where(shares, tree.storage[safe], storage)
    new = NewNodes(
        node=node,
        parent=parent,
        anchor_number=anchor_number,
        offset=1 + earlier_equal(anchor_number, mask),
        span=jnp.ones_like(node),
        start=jnp.where(is_root, 0, tree.start[safe] + tree.count[safe]),
        trunk=trunk,
        storage=storage,
    )
    return replace(insert(tree, new), overflow=overflow), node
