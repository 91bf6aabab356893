"""Feeding tokens: the same step as decoding, with many query tokens per node."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.nn import logsumexp

from deft_jax.runtime.attention_method import AttentionMethod
from deft_jax.runtime.forward import Model, forward
from deft_jax.runtime.state import (
    NOTHING,
    Chunk,
    DecodeState,
    Question,
    Report,
    Rows,
    Scores,
    pack_numbers,
)
from deft_jax.sampling.vocab_search import top_k
from deft_jax.tree.appending import append
from deft_jax.tree.branching import branch
from deft_jax.tree.state import NO_NODE, Tree, choose, replace

NUM_TOP = 20
"""Most likely next tokens that a `Question` is answered with."""


def prefill(
    model: Model,
    state: DecodeState,
    chunk: Chunk,
    question: Question | None = None,
    *,
    method: AttentionMethod,
) -> tuple[DecodeState, Report]:
    """Feed a chunk of tokens and return the new state, with a report.

    Rows whose prompt ends in the chunk become fresh rows at its root. A request of
    which a token's hidden state is not finite is marked in `not_finite`. If the chunk
    does not fit the free pages or nodes, or if something before it did not, the state
    is as before but for `tree.overflow`.

    Args:
        model: the network.
        state: donated by the caller's jit.
        chunk: tokens to feed, and nodes to make for them.
        question: what to tell of the tokens, None for nothing.
        method: static; stores KV and attends.
    """
    size, num_requests = state.tree.num_nodes, state.roots.shape[0]
    was_fine = state.tree.overflow == 0
    tree, feeding, roots, made = _make_nodes(state, chunk)
    idle = (chunk.node < 0) | ~was_fine
    node = jnp.where(idle, size, _node_of(chunk.node, feeding, roots, size))
    tree, slots = append(tree, node, chunk.token)
    fits = was_fine & (tree.overflow == 0)
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
    broken = ~jnp.all(jnp.isfinite(hidden), axis=1) & ~idle
    not_finite = state.not_finite & ~chunk.starts
    not_finite |= any_of_request(broken, chunk.request, num_requests)
    keys = state.branch_keys.with_roots(made, chunk.key)
    live = jnp.append(tree.live, False)
    # Prompt tokens that others may share rest from the start.
    resting = state.resting.at[feeding].set(True, mode="drop")
    state = dataclasses.replace(
        state,
        tree=tree,
        pool=pool,
        rows=choose(fresh, rows, state.rows),
        hidden=jnp.where(fresh[:, None], hidden[last], state.hidden),
        roots=jnp.where(fits, roots, state.roots),
        feeding=jnp.where(fits & live[feeding], feeding, state.feeding),
        not_finite=jnp.where(fits, not_finite, state.not_finite),
        branch_keys=choose(fits, keys, state.branch_keys),
        resting=jnp.where(fits, resting & tree.live, state.resting),
    )
    scores = None if question is None else _answer(model, hidden, question)
    return state, Report(pack_numbers(state), scores=scores)


def _make_nodes(
    state: DecodeState, chunk: Chunk
) -> tuple[Tree, jax.Array, jax.Array, jax.Array]:
    """Make the nodes that a chunk asks for: for shared prompts, then the roots.

    Returns:
        The tree, the slots' nodes for shared prompts and their roots [R] int32, and the
        roots that were made, N for none.
    """
    size = state.tree.num_nodes

    def make(tree, code, feeding):
        mask = code != NOTHING
        parent = _node_of(code, feeding, state.roots, size)
        tree, node = branch(tree, jnp.where(code < 0, NO_NODE, parent), mask)
        return tree, node, mask & (node < size)

    tree, node, is_made = make(state.tree, chunk.prefix, state.feeding)
    # A slot's next request does not go on where the last one was fed.
    feeding = jnp.where(chunk.starts, size, state.feeding)
    feeding = jnp.where(is_made, node, feeding)
    tree, node, is_made = make(tree, chunk.root, feeding)
    made = jnp.where(is_made, node, size)
    return tree, feeding, jnp.where(is_made, node, state.roots), made


def _node_of(code: jax.Array, feeding: jax.Array, roots: jax.Array, size: int):
    """Return the nodes that codes stand for; anything for codes below 0.

    N = 10, 2 slots, feeding 4 5, roots 7 10, code 3 10 12  ->  3 4 7
    """
    named = jnp.concatenate([feeding, roots])
    index = jnp.clip(code - size, 0, named.shape[0] - 1)
    return jnp.where(code < size, code, named[index])


def _answer(model: Model, hidden: jax.Array, question: Question) -> Scores:
    """Return the log-probabilities that a question is about."""
    with jax.named_scope("scores"):
        logits = model.logits(hidden)
        total = logsumexp(logits, axis=1)
        target = jnp.clip(question.target, 0, logits.shape[1] - 1)
        chosen = jnp.take_along_axis(logits, target[:, None], axis=1)[:, 0]
        at = jnp.maximum(question.top, 0)
        value, token = top_k(logits[at], min(NUM_TOP, logits.shape[1]))
        return Scores(chosen - total, token, value - total[at][:, None])


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
