"""Taking nodes their slots, so that their tokens can be fed again later."""

import jax
import jax.numpy as jnp

from deft_jax.tree.arguments import masks
from deft_jax.tree.free_lists import push
from deft_jax.tree.state import Tree, replace


def release(tree: Tree, mask: jax.Array) -> Tree:
    """Free the slots of some nodes, which stay with their numbers and no tokens.

    Once `append` gives them their tokens again, parents before children, they are as
    they were. Pages without a token of another node are free.

        A of 3 tokens ─ B of 2 ─ C of 1, positions 0, 3 and 5, B and C released
        A of 3        ─ B of 0 ─ C of 0, both start at 3

    Args:
        tree: the forest.
        mask: [N] bool, true for nodes to release; all below a released node that has
            tokens must be released too.

    Raises:
        DeftError: the mask is no [N] bool.
    """
    size = tree.num_nodes
    mask = masks("mask", mask, size) & tree.live
    slot_node = jnp.where(jnp.append(mask, False)[tree.slot_node], size, tree.slot_node)
    empty = jnp.all(slot_node == size, axis=1) & (tree.page_owner < size)
    free_pages, num_free_pages = push(
        tree.free_pages, tree.num_free_pages, empty, jnp.zeros_like(empty)
    )
    lost = jnp.where(mask, tree.count, 0)
    return replace(
        tree,
        count=tree.count - lost,
        start=tree.start - _sum_above(tree, lost),
        page_owner=jnp.where(empty, size, tree.page_owner),
        slot_node=slot_node,
        free_pages=free_pages,
        num_free_pages=num_free_pages,
    )


def _sum_above(tree: Tree, weight: jax.Array) -> jax.Array:
    """Return [N] int32, the weights of all nodes above each node.

    first, end    A 0 3, B 1 3, C 2 3      weight 0 2 1  ->  0 0 2
    marks at 1: 2, at 2: 1, at 3: -3       sums 0 2 3, of C without its own: 2
    """
    size = tree.num_nodes
    marks = jnp.zeros(size + 2, jnp.int32)
    marks = marks.at[tree.first].add(weight).at[tree.end].add(-weight)
    above = jnp.cumsum(marks, dtype=jnp.int32)[tree.first] - weight
    return jnp.where(tree.live, above, 0)
