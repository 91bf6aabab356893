"""Whose a node is, where requests start below nodes of others, and what is below what.

A request owns its root and all below it, down to the roots of requests that started
there. Nodes above every root, such as prompts that rest in a cache, are nobody's.
"""

import jax
import jax.numpy as jnp

from deft_jax.tree.arguments import integers
from deft_jax.tree.counting import compares_nodes, count_nodes_below
from deft_jax.tree.state import NO_NODE, Tree, replace


def owned(tree: Tree, roots: jax.Array) -> jax.Array:
    """Return the request that owns each node: that of the nearest root above it.

        A ─ B ─ C      roots B and C  ->  slots 2 0 1, of 2 requests
              └ D                         and 0 for D

    Args:
        tree: the forest.
        roots: [R] int32, root of each request slot; a number that is no live node (N,
            NO_NODE) for free slots. The root itself is its request's.

    Returns:
        [N] int32 request slots, R for nodes of nobody and nodes that are free.

    Raises:
        DeftError: `roots` is no integers.
    """
    above = _roots_above(tree, integers("roots", roots, "R"))
    slot = jnp.argmax(above, axis=1).astype(jnp.int32)
    return jnp.where(jnp.max(above, axis=1) >= 0, slot, above.shape[1])


def _roots_above(tree: Tree, roots: jax.Array) -> jax.Array:
    """Return [N, R] int32, depth-first numbers of the roots above each node, else -1.

    A node counts as above itself.
    """
    safe = jnp.clip(roots, 0, tree.num_nodes - 1)
    first = jnp.where(roots == safe, tree.first[safe], tree.num_nodes)
    end = jnp.where(roots == safe, tree.end[safe], 0)
    number = tree.first[:, None]
    above = (first[None] <= number) & (number < end[None])
    return jnp.where(above, first[None], -1)


def is_below(tree: Tree, tops: jax.Array) -> jax.Array:
    """Return [N] bool, true for the live nodes in the subtrees of some nodes.

    first, end    A 0 3, B 1 2, C 2 3      tops B  ->  0 1 0

    Args:
        tree: the forest.
        tops: [R] int32, live nodes, which count themselves; N for none.
    """
    return tree.live & (jnp.max(_roots_above(tree, tops), axis=1) >= 0)


def only_below(tree: Tree, tops: jax.Array) -> Tree:
    """Return the tree as those see it who own some subtrees and know of nothing else.

    All other nodes seem to be free, and the heads of the subtrees to be roots. For
    looking at only: depth-first numbers have gaps.

    Args:
        tree: the forest.
        tops: [R] int32, live nodes at the heads of the subtrees; N for none.
    """
    inside = is_below(tree, tops)
    is_top = jnp.zeros(tree.num_nodes, bool).at[tops].set(True, mode="drop")
    return replace(
        tree,
        first=jnp.where(inside, tree.first, tree.num_nodes),
        parent=jnp.where(inside & ~is_top, tree.parent, NO_NODE),
    )


def below(tree: Tree, mask: jax.Array, roots: jax.Array | None = None) -> jax.Array:
    """Return [N] bool, true for nodes that are masked or have a masked ancestor.

    With `roots`, a masked node counts for nodes of its own request alone: not for those
    of a request that started below it.

        first, end    A 0 4, B 1 2, C 2 4, D 3 4     C masked  ->  0 0 1 1
                      A masked, roots A and C        ->  1 1 0 0

    Args:
        tree: the forest.
        mask: [N] bool.
        roots: [R] int32, root of each request slot, N for free slots.
    """
    least = None
    if roots is not None:
        least = jnp.maximum(jnp.max(_roots_above(tree, roots), axis=1), 0)
    if not compares_nodes(tree.num_nodes, tree.num_nodes):
        return tree.live & (_count_above(tree, mask, least) > 0)
    number = tree.first[:, None]
    above = mask[None] & (tree.first[None] <= number) & (number < tree.end[None])
    if least is not None:
        above &= tree.first[None] >= least[:, None]
    return tree.live & jnp.any(above, axis=1)


def _count_above(tree: Tree, mask: jax.Array, least: jax.Array | None) -> jax.Array:
    """Return [N] int32, masked nodes above each node, itself counted.

    They are inside more subtrees of masked nodes than have ended before them.

        first, end    A 0 3, B 1 2, C 2 3      C masked
        begun         0 0 1                    ended 0 0 0  ->  0 0 1

    Args:
        tree: the forest.
        mask: [N] bool.
        least: [N] int32, depth-first number of a node at or above each node; what is
            above that one does not count: it has begun before and has not ended.
    """
    most = tree.num_nodes + 1
    begins = jnp.where(mask, tree.first, most)
    ends = jnp.where(mask, tree.end, most)

    def begun_not_ended(begun_before, ended_by):
        begun = count_nodes_below(begins, begun_before, most)
        return begun - count_nodes_below(ends, ended_by + 1, most)

    above = begun_not_ended(tree.first + 1, tree.first)
    return above if least is None else above - begun_not_ended(least, least)


def num_below(tree: Tree, mask: jax.Array) -> jax.Array:
    """Return [N] int32, masked nodes in the subtree of each node, itself counted.

    first, end A 0 3, B 1 2, C 2 3, mask 0 1 1  ->  2 1 1: numbers 1, 2 within 0-3
    """
    size = tree.num_nodes
    number = jnp.where(mask, tree.first, size)
    return count_nodes_below(number, tree.end, size) - count_nodes_below(
        number, tree.first, size
    )
