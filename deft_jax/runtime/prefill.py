"""Prompts: the same step as decoding, with many query tokens per node."""

import dataclasses

import jax.numpy as jnp

from deft_jax.runtime.attention_method import AttentionMethod
from deft_jax.runtime.forward import Model, forward
from deft_jax.runtime.state import Chunk, DecodeState, Rows
from deft_jax.tree.appending import append
from deft_jax.tree.branching import branch
from deft_jax.tree.state import NO_NODE, choose, replace


def prefill(
    model: Model,
    state: DecodeState,
    chunk: Chunk,
    *,
    method: AttentionMethod,
) -> DecodeState:
    """Feed a chunk of prompts: the same step, many query tokens per node.

    Rows whose prompt ends in the chunk become fresh rows at its root. If the chunk does
    not fit the free pages or nodes the state is as before but for `tree.overflow`.
    """
    tree, size = replace(state.tree, overflow=jnp.int32(0)), state.tree.num_nodes
    num_requests = state.roots.shape[0]
    tree, made = branch(tree, jnp.full(num_requests, NO_NODE, jnp.int32), chunk.starts)
    roots = jnp.where(chunk.starts, made, state.roots)
    request = jnp.minimum(chunk.request, num_requests - 1)
    idle = chunk.request >= num_requests
    node = jnp.where(idle, size, roots[request])
    tree, slots = append(tree, node, chunk.token)
    fits = tree.overflow == 0
    tree = choose(fits, tree, replace(state.tree, overflow=tree.overflow))
    hidden, pool, _ = forward(model, tree, state.pool, slots, chunk.token, method)
    fresh = (chunk.last >= 0) & fits
    last = jnp.maximum(chunk.last, 0)
    rows = Rows(
        node=slots.node[last],
        request=chunk.request[last],
        number=chunk.number,
        generated=jnp.zeros_like(chunk.last),
    )
    return dataclasses.replace(
        state,
        tree=tree,
        pool=pool,
        rows=choose(fresh, rows, state.rows),
        hidden=jnp.where(fresh[:, None], hidden[last], state.hidden),
        roots=jnp.where(fits, roots, state.roots),
        branch_keys=state.branch_keys.with_roots(jnp.where(fits, made, size)),
    )
