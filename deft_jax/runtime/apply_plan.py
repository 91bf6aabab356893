"""What a plan does to the forest: accept, prune, branch, append."""

import jax
import jax.numpy as jnp
from jax import lax

from deft_jax.runtime.state import DecodeState
from deft_jax.strategies.protocol import RUNNING, Plan
from deft_jax.tree.appending import (
    NextSlots,
    append_at_starts,
    fill,
    find_next_slots,
)
from deft_jax.tree.counting import tally
from deft_jax.tree.draft_levels import Growth, branch_rows
from deft_jax.tree.pruning import Staying, accept_and_prune
from deft_jax.tree.state import OUT_OF_PAGES, Tree, choose, replace


def apply_plan(state: DecodeState, plan: Plan, draft_depth: int, shares: bool = False):
    """Change the forest as a plan asks.

    Where the plan does not fit all is as before, but for the tree's overflow.

    Args:
        state: the state before the step.
        plan: what the planner asks for.
        draft_depth: levels of rows that continue rows of the same plan, 1 for none.
        shares: true if new children share the pages of their parents.

    Returns:
        The tree, the slots of the plan's tokens, [R] int32 the requests' roots, and the
        keys of the branches.
    """
    tree, size = state.tree, state.tree.num_nodes
    num_requests = state.roots.shape[0]
    stopped = jnp.append(plan.stop, True)[jnp.minimum(plan.request, num_requests)]
    live = (plan.source >= 0) & (plan.finish == RUNNING) & ~stopped
    request = jnp.where(live, plan.request, num_requests)
    ended = _ended(state.roots, request, size)
    growth = Growth(plan.source, plan.branch, plan.draft)
    if shares:
        growth = growth._replace(shares=jnp.ones_like(plan.branch))

    def change(tree):
        doomed, keep = _drops(plan, live, jnp.where(ended, state.roots, size))
        staying = Staying(keep, state.resting, state.roots)
        changed = accept_and_prune(tree, plan.accept, doomed, staying)
        return _grow(tree, changed, growth, live, draft_depth)

    roots = jnp.where(ended, size, state.roots)
    if draft_depth > 1:
        # Plans with drafts change the tree in almost every step.
        tree, node, next_slots = change(tree)
        fits = tree.overflow == 0
        keys = choose(
            fits, state.branch_keys.grown(plan, node, draft_depth), state.branch_keys
        )
        return *fill(tree, node, plan.token, next_slots, fits), roots, keys
    changes = jnp.any(plan.accept >= 0) | jnp.any(plan.prune) | jnp.any(ended)
    changes |= jnp.any((plan.source >= 0) & (~live | plan.branch))

    def step(_, carry):
        tree, node, _ = change(carry[0])
        keys = carry[2].grown(plan, node, draft_depth)
        return tree, node, choose(tree.overflow == 0, keys, carry[2])

    # A loop of one step or none: unlike the branches of a condition, which copy what
    # they leave as it is, it works in place, and most plans change nothing.
    carry = tree, jnp.where(live, plan.source, size), state.branch_keys
    tree, node, keys = lax.fori_loop(0, changes.astype(jnp.int32), step, carry)
    tree, slots = append_at_starts(tree, node, plan.token, shares)
    return tree, slots, roots, keys


def _grow(
    tree: Tree, changed: Tree, growth: Growth, live: jax.Array, draft_depth: int
) -> tuple[Tree, jax.Array, NextSlots]:
    """Branch as a plan asks, and find where its tokens go.

    Args:
        tree: the forest before the step.
        changed: the forest without what the plan drops.
        growth: what the rows continue.
        live: [B] bool, rows that go on.
        draft_depth: levels of rows that continue rows of the same plan.

    Returns:
        The tree, [B] int32 the node of each row, N for none, and where their tokens
        go. If nodes or pages run out nothing changes but the overflow, and no row
        has a node.
    """
    size = tree.num_nodes
    changed, node, storage = branch_rows(changed, growth, live, draft_depth)
    by = None if growth.shares is None else node
    next_slots = find_next_slots(changed, storage, by)
    overflow = changed.overflow | jnp.where(next_slots.fit(changed), 0, OUT_OF_PAGES)
    fits = overflow == 0
    tree = choose(fits, changed, replace(tree, overflow=overflow))
    return tree, jnp.where(fits, node, size), next_slots


def _drops(plan: Plan, live: jax.Array, ended_root: jax.Array):
    """Find what a plan drops: what it prunes, rows that finish and ended requests.

    Args:
        plan: what the planner asks for.
        live: [B] bool, rows that go on.
        ended_root: [R] int32, roots of the requests that end, N for the others.

    Returns:
        [N] bool, nodes to drop with all below them, and nodes to keep otherwise.
    """
    size = plan.prune.shape[0]
    node = jnp.where(plan.source >= 0, plan.source, size)
    finished = jnp.where(plan.branch | (plan.finish == RUNNING), size, node)
    doomed = tally(finished, size) + tally(ended_root, size) > 0
    continued = tally(jnp.where(live, node, size), size) > 0
    return plan.prune | doomed, plan.keep | continued


def _ended(roots: jax.Array, request: jax.Array, size: int) -> jax.Array:
    """Return [R] bool, the requests in use that no row [B] belongs to.

    roots 4 9 10, request 1 1 3, 10 nodes, 3 requests  ->  1 0 0
    """
    slot = jnp.arange(roots.shape[0], dtype=jnp.int32)
    running = jnp.any(request[None] == slot[:, None], axis=1)
    return (roots < size) & ~running
