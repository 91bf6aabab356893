"""Nodes that lose their tokens and get them again, where they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deft_jax.errors import DeftError
from deft_jax.tree.appending import append
from deft_jax.tree.branching import branch
from deft_jax.tree.releasing import release
from deft_jax.tree.state import NO_NODE, Tree


def grown() -> Tree:
    """Return A of 3 tokens, B of 2 and C of 1 in a chain, and D of 2 below A."""
    tree = Tree.create(8, 8, 2)
    for parent, count in ((NO_NODE, 3), (0, 2), (1, 1), (0, 2)):
        tree, node = branch(tree, jnp.array([parent]), jnp.array([True]))
        tree, _ = append(tree, jnp.repeat(node, count), 10 * node + jnp.arange(count))
    return tree


def mask(*nodes: int) -> jax.Array:
    return jnp.zeros(8, bool).at[jnp.array(nodes)].set(True)


def slots(tree: Tree) -> set[tuple[int, int, int]]:
    """Return the node, position and token of every slot that holds one."""
    arrays = (tree.slot_node, tree.slot_position, tree.slot_token)
    rows = np.stack([np.asarray(x).ravel() for x in arrays], axis=1)
    return {(int(a), int(b), int(c)) for a, b, c in rows if a < tree.num_nodes}


def test_the_example():
    tree = release(grown(), mask(1, 2))
    tree.check()
    assert tree.count[:4].tolist() == [3, 0, 0, 2]
    assert tree.start[:4].tolist() == [0, 3, 3, 3]
    assert tree.num_free_pages == 8 - 2 - 1


def test_tokens_that_are_fed_again_are_where_they_were():
    before = grown()
    tree = release(before, mask(1, 2))
    tree, _ = append(tree, jnp.array([1]), jnp.array([10]))
    assert tree.start[2] == 4
    tree, _ = append(tree, jnp.array([1, 2]), jnp.array([11, 20]))
    tree.check()
    assert slots(tree) == slots(before)
    for name in ("parent", "first", "end", "count", "start", "num_free_pages"):
        assert (getattr(tree, name) == getattr(before, name)).all()


def test_a_whole_tree_is_released_and_nothing_is_not():
    before = grown()
    tree = release(before, mask(0, 1, 2, 3))
    tree.check()
    assert tree.num_free_pages == 8 and not tree.count.any() and not tree.start.any()
    assert slots(release(before, jnp.zeros(8, bool))) == slots(before)


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(DeftError, match=r"mask must be \[8\] bool"):
        release(grown(), jnp.zeros(7, bool))
