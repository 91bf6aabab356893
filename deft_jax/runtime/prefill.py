"""Prompts: the same step as decoding, with many query tokens per node."""

import dataclasses

import jax
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
    """Feed a chunk of prompts and return the new state.

    Rows whose prompt ends in the chunk become fresh rows at its root. A request of
    which a token's hidden state is not finite is marked in `not_finite`. If the chunk
    does not fit the free pages or nodes the state is as before but for
    `tree.overflow`: the host must look at it before it feeds another chunk.

    Args:
        model: the network.
        state: donated by the caller's jit.
        chunk: prompt tokens to feed.
        method: static; stores KV and attends.
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
    broken = ~jnp.all(jnp.isfinite(hidden), axis=1)
    not_finite = state.not_finite & ~chunk.starts
    not_finite |= any_of_request(broken & ~idle, chunk.request, num_requests)
    return dataclasses.replace(
        state,
        tree=tree,
        pool=pool,
        rows=choose(fresh, rows, state.rows),
        hidden=jnp.where(fresh[:, None], hidden[last], state.hidden),
        roots=jnp.where(fits, roots, state.roots),
        not_finite=jnp.where(fits, not_finite, state.not_finite),
        branch_keys=state.branch_keys.with_roots(jnp.where(fits, made, size)),
    )


def any_of_request(flag: jax.Array, request: jax.Array, num_requests: int) -> jax.Array:
    """Return [R] bool, whether any row of each request is flagged.

    flag 1 0 0, request 1 0 2, 3 requests  ->  0 1 0

    Args:
        flag: [Q] bool, true for rows that are flagged.
        request: [Q] int32, request slot of each row.
        num_requests: `R`.
    """
    slot = jnp.arange(num_requests, dtype=jnp.int32)
    return jnp.any((request[None] == slot[:, None]) & flag[None], axis=1)
