"""What a plan does to the forest: accept, prune, branch, append."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from deft_jax.runtime.state import DecodeState
from deft_jax.strategies.protocol import RUNNING, Plan
from deft_jax.tree.appending import (
    NextSlots,
    Slots,
    append_at_starts,
    fill,
    find_next_slots,
)
from deft_jax.tree.counting import tally
from deft_jax.tree.draft_levels import Growth, branch_rows
from deft_jax.tree.ownership import is_below
from deft_jax.tree.pruning import Staying, accept_and_prune
from deft_jax.tree.state import OUT_OF_PAGES, Tree, choose, replace


def apply_plan(
    state: DecodeState,
    plan: Plan,
    draft_depth: int,
    rests: jax.Array,
    shares: bool = False,
) -> tuple[DecodeState, Slots, jax.Array]:
    """Change the forest as a plan asks.

    Where the plan does not fit all is as before, but for the tree's overflow.

    Args:
        state: the state before the step.
        plan: what the planner asks for.
        draft_depth: levels of rows that continue rows of the same plan, 1 for none.
        rests: [R] bool, requests whose nodes rest when their branches or they end.
        shares: static, true if new children share the pages of their parents.

    Returns:
        The state with the changed tree, its resting nodes and the branches' keys, the
        slots of the plan's tokens, and [R] int32 the requests' roots.
    """
    tree, size = state.tree, state.tree.num_nodes
    num_requests = state.roots.shape[0]
    stopped = jnp.append(plan.stop, True)[jnp.minimum(plan.request, num_requests)]
    live = (plan.source >= 0) & (plan.finish == RUNNING) & ~stopped
    request = jnp.where(live, plan.request, num_requests)
    ended = _ended(state.roots, request, size)
    roots = jnp.where(ended, size, state.roots)
    ends = _Ends(state.roots, ended, rests)
    growth = Growth(plan.source, plan.branch, plan.draft)
    if shares:
        growth = growth._replace(shares=jnp.ones_like(plan.branch))
    before = state.branch_keys, state.resting
    if draft_depth > 1:
        # Plans with drafts change the tree in almost every step.
        tree, resting, node, next_slots = _change(
            tree, state.resting, plan, growth, live, ends, draft_depth
        )
        fits = tree.overflow == 0
        after = state.branch_keys.grown(plan, node, draft_depth), resting
        keys, resting = choose(fits, after, before)
        tree, slots = fill(tree, node, plan.token, next_slots, fits)
    else:
        changes = jnp.any(plan.accept >= 0) | jnp.any(plan.prune) | jnp.any(ended)
        changes |= jnp.any((plan.source >= 0) & (~live | plan.branch))

        def change(_, carry):
            tree, resting, node, _ = _change(
                carry[0], carry[3], plan, growth, live, ends, draft_depth
            )
            keys = carry[2].grown(plan, node, draft_depth)
            fits = tree.overflow == 0
            keys, resting = choose(fits, (keys, resting), (carry[2], carry[3]))
            return tree, node, keys, resting

        # A loop of one step or none: unlike the branches of a condition, which copy
        # what they leave as it is, it works in place, and most plans change nothing.
        carry = tree, jnp.where(live, plan.source, size), *before
        tree, node, keys, resting = lax.fori_loop(
            0, changes.astype(jnp.int32), change, carry
        )
        tree, slots = append_at_starts(tree, node, plan.token, shares)
    state = dataclasses.replace(state, tree=tree, branch_keys=keys, resting=resting)
    return state, slots, roots


class _Ends(NamedTuple):
    """Which requests end with a plan.

    Attributes:
        roots: [R] int32, root of each request slot, N for free slots.
        ended: [R] bool, requests that end.
        rests: [R] bool, requests whose nodes rest when their branches or they end.
    """

    roots: jax.Array
    ended: jax.Array
    rests: jax.Array


def _change(
    tree: Tree,
    resting: jax.Array,
    plan: Plan,
    growth: Growth,
    live: jax.Array,
    ends: _Ends,
    draft_depth: int,
) -> tuple[Tree, jax.Array, jax.Array, NextSlots]:
    """Accept, prune and branch as a plan asks, and find where its tokens go.

    Args:
        tree: the forest before the step.
        resting: [N] bool, nodes that stay until the host drops them.
        plan: what the planner asks for.
        growth: what the rows continue.
        live: [B] bool, rows that go on.
        ends: the requests that end.
        draft_depth: levels of rows that continue rows of the same plan.

    Returns:
        The tree, the nodes that rest now, [B] int32 the node of each row, N for none,
        and where their tokens go. If nodes or pages run out nothing changes but the
        overflow, and no row has a node.
    """
    size = tree.num_nodes
    doomed, keep, resting = _drops(tree, resting, plan, live, ends)
    changed = accept_and_prune(tree, plan.accept, doomed, Staying(keep, resting))
    resting &= changed.live
    changed, node, storage = branch_rows(changed, growth, live, draft_depth)
    by = None if growth.shares is None else node
    next_slots = find_next_slots(changed, storage, by)
    overflow = changed.overflow | jnp.where(next_slots.fit(changed), 0, OUT_OF_PAGES)
    fits = overflow == 0
    tree = choose(fits, changed, replace(tree, overflow=overflow))
    return tree, resting, jnp.where(fits, node, size), next_slots


def _drops(tree: Tree, resting: jax.Array, plan: Plan, live: jax.Array, ends: _Ends):
    """Find what a plan drops: what it prunes, rows that finish and ended requests.

    What is not below the root of a request of this turn is another's, and stays.

    Args:
        tree: the forest before the step.
        resting: [N] bool, nodes that stay until the host drops them.
        plan: what the planner asks for.
        live: [B] bool, rows that go on.
        ends: the requests that end.

    Returns:
        [N] bool each: nodes to drop with all below them, nodes to keep otherwise, and
        the nodes that rest from now on.
    """
    size, num_requests = tree.num_nodes, ends.roots.shape[0]
    node = jnp.where(plan.source >= 0, plan.source, size)
    finished = jnp.where(plan.branch | (plan.finish == RUNNING), size, node)
    row_rests = jnp.append(ends.rests, False)[jnp.clip(plan.request, 0, num_requests)]
    ended_root = jnp.where(ends.ended, ends.roots, size)
    doomed = tally(jnp.where(row_rests, size, finished), size)
    doomed += tally(jnp.where(ends.rests, size, ended_root), size)
    doomed = (doomed > 0) | (plan.prune & is_below(tree, ends.roots))
    resting |= tally(jnp.where(row_rests, finished, size), size) > 0
    resting |= is_below(tree, jnp.where(ends.rests, ended_root, size))
    continued = tally(jnp.where(live, node, size), size) > 0
    return doomed, plan.keep | continued, resting


def _ended(roots: jax.Array, request: jax.Array, size: int) -> jax.Array:
    """Return [R] bool, the requests in use that no row [B] belongs to.

    roots 4 9 10, request 1 1 3, 10 nodes, 3 requests  ->  1 0 0
    """
    slot = jnp.arange(roots.shape[0], dtype=jnp.int32)
    running = jnp.any(request[None] == slot[:, None], axis=1)
    return (roots < size) & ~running
