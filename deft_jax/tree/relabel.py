"""TEMPORARY"""

import jax.numpy as jnp


def split(tree, node, at):
    return tree, jnp.full_like(node, tree.num_nodes)


def release(tree, mask):
    return tree
