"""What the host changes in the forest between bursts: one program for all of it."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from deft_jax.runtime.prefill import any_of_request
from deft_jax.runtime.split_nodes import split_nodes
from deft_jax.runtime.state import DecodeState, Edit, Report, pack_numbers
from deft_jax.tree.counting import tally
from deft_jax.tree.ownership import below, is_below
from deft_jax.tree.pruning import prune
from deft_jax.tree.releasing import release
from deft_jax.tree.state import replace


def edit(state: DecodeState, changes: Edit) -> tuple[DecodeState, Report]:
    """Change the forest, and let it run again if something did not fit.

    Args:
        state: donated by the caller's jit.
        changes: what to drop, rest, release, split and move.

    Returns:
        The state and the report, with the nodes that the splits made.
    """
    tree = replace(state.tree, overflow=jnp.int32(0))
    state = dataclasses.replace(state, tree=tree)
    state = lax.cond(
        jnp.any(changes.dropped),
        lambda state: _drop(state, changes.dropped),
        lambda state: state,
        state,
    )
    state = _let_rest(state, changes.rest)
    state, split_off = split_nodes(state, changes.split, changes.at)
    state = dataclasses.replace(
        state,
        tree=release(state.tree, changes.released),
        rows=jax.tree.map(lambda x: x[changes.row], state.rows),
        hidden=state.hidden[changes.row],
    )
    return state, Report(pack_numbers(state, split_off=split_off))


def _drop(state: DecodeState, dropped: jax.Array) -> DecodeState:
    """Drop nodes, the rows there and below, and requests left without a node."""
    size, num_requests = state.tree.num_nodes, state.roots.shape[0]
    keep = state.keep | (tally(state.rows.node, size) > 0)
    resting = state.resting & ~below(state.tree, dropped)
    tree = prune(state.tree, dropped, keep, resting=resting)
    live = jnp.append(tree.live, False)
    kept, rows = live[state.rows.node], state.rows
    rows = dataclasses.replace(
        rows,
        node=jnp.where(kept, rows.node, size),
        request=jnp.where(kept, rows.request, num_requests),
    )
    return dataclasses.replace(
        state,
        tree=tree,
        rows=rows,
        roots=jnp.where(live[state.roots], state.roots, size),
        feeding=jnp.where(live[state.feeding], state.feeding, size),
        resting=resting & tree.live,
    )


def _let_rest(state: DecodeState, rest: jax.Array) -> DecodeState:
    """Let nodes rest; their rows idle, and a request without another row ends."""
    size, num_requests = state.tree.num_nodes, state.roots.shape[0]
    rows = state.rows
    idles = jnp.append(rest, False)[rows.node]
    goes_on = (rows.node < size) & ~idles
    was_ended = any_of_request(idles, rows.request, num_requests)
    was_ended &= ~any_of_request(goes_on, rows.request, num_requests)
    below = is_below(state.tree, jnp.where(was_ended, state.roots, size))
    return dataclasses.replace(
        state,
        resting=state.resting | (rest & state.tree.live) | below,
        roots=jnp.where(was_ended, size, state.roots),
        rows=dataclasses.replace(
            rows,
            node=jnp.where(idles, size, rows.node),
            request=jnp.where(idles, num_requests, rows.request),
        ),
    )
