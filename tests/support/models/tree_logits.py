"""A Llama over one sequence, through the tree, its pages and the op."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from deft_jax.kv.pool import create_pool
from deft_jax.models.families.llama import Llama
from deft_jax.runtime.attention_method import TreeMethod
from deft_jax.runtime.forward import forward
from deft_jax.tree.appending import append
from deft_jax.tree.branching import branch
from deft_jax.tree.state import NO_NODE, Tree

NODES, PAGES, PAGE_SIZE = 2, 8, 6
BRANCHED_NODES = 8


@jax.jit
def _step(model, tree, pool, node, token):
    tree, slots = append(tree, node, token)
    hidden, pool, _ = forward(model, tree, pool, slots, token, TreeMethod())
    return tree, pool, model.logits(hidden)


def tree_logits(
    model: Llama,
    tokens: Sequence[int] | np.ndarray,
    *,
    chunk: int,
    kv_dtype: jnp.dtype | None = None,
) -> jax.Array:
    """Return [T, V] float32 logits of one node, fed `chunk` tokens at a time.

    Args:
        model: the network.
        tokens: [T], the tokens.
        chunk: tokens of a step.
        kv_dtype: dtype of the pool, by default that of the activations.
    """
    config = model.config
    tree = Tree.create(NODES, PAGES, PAGE_SIZE)
    kv_shape = PAGES, config.num_kv_heads, PAGE_SIZE, config.head_dim
    pool = create_pool(config.num_layers, *kv_shape, kv_dtype or model.dtype)
    tree, root = branch(tree, jnp.array([NO_NODE]), jnp.array([True]))
    logits = []
    for first in range(0, len(tokens), chunk):
        part = jnp.asarray(tokens[first : first + chunk], jnp.int32)
        idle = 0, chunk - len(part)
        node = jnp.pad(jnp.repeat(root, len(part)), idle, constant_values=NODES)
        tree, pool, step = _step(model, tree, pool, node, jnp.pad(part, idle))
        logits.append(step[: len(part)])
    assert tree.overflow == 0
    return jnp.concatenate(logits)


def forest_logits(
    model: Llama,
    parents: Sequence[int],
    tokens: Sequence[Sequence[int]],
    *,
    page_size: int,
) -> list[np.ndarray]:
    """Return the float32 logits of a forest that is branched first and fed at once.

    Args:
        model: the network.
        parents: index of each node's parent, NO_NODE for roots; parents come first.
        tokens: the tokens of each node.
        page_size: tokens per page.

    Returns:
        [tokens of the node, V] for each node.
    """
    config, pages = model.config, len(parents)
    tree = Tree.create(BRANCHED_NODES, pages, page_size)
    kv_shape = pages, config.num_kv_heads, page_size, config.head_dim
    pool = create_pool(config.num_layers, *kv_shape, model.dtype)
    nodes: list[int] = []
    for parent in parents:
        above = jnp.array([nodes[parent] if parent >= 0 else NO_NODE])
        tree, made = branch(tree, above, jnp.array([True]))
        nodes.append(int(made[0]))
    rows = [x for x, own in zip(nodes, tokens, strict=True) for _ in own]
    fed = jnp.array([token for own in tokens for token in own])
    tree, _, logits = _step(model, tree, pool, jnp.array(rows), fed)
    assert tree.overflow == 0
    return [np.asarray(logits)[np.array(rows) == x] for x in nodes]
