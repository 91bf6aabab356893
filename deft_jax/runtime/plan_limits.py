"""What a plan may ask for; the device leaves out the rest, so that it does no harm."""

import dataclasses

import jax
import jax.numpy as jnp

from deft_jax.strategies.protocol import LENGTH, RUNNING, Plan, View
from deft_jax.tree.state import NO_NODE


def within_limits(plan: Plan, view: View, draft_depth: int) -> tuple[Plan, jax.Array]:
    """Return the plan without what cannot be carried out, and what was left out.

    A row is idle if its source is no live node of its request, and no earlier row that
    takes part in the plan with at most `draft_depth` levels; or if its token is not in
    the vocabulary. A tip that is no live node accepts nothing. A branch that has
    `max_new_tokens` tokens ends with its last one.

    Args:
        plan: what the planner asks for.
        view: what the planner saw.
        draft_depth: levels of rows that may continue rows of the plan.

    Returns:
        The plan, and [B] int32 the source of each row that was left out, NO_NODE for
        the others.
    """
    possible = _possible(plan, view, draft_depth)
    limit = view.table.max_new_tokens
    slot = jnp.clip(plan.request, 0, limit.shape[0] - 1)
    full = ~plan.draft & (plan.generated >= limit[slot])
    plan_within = dataclasses.replace(
        plan,
        source=jnp.where(possible, plan.source, NO_NODE),
        accept=jnp.where(_is_live(view, plan.accept), plan.accept, NO_NODE),
        finish=jnp.where(full & (plan.finish == RUNNING), LENGTH, plan.finish),
    )
    return plan_within, jnp.where(possible, NO_NODE, plan.source)


def _possible(plan: Plan, view: View, draft_depth: int) -> jax.Array:
    """Return [B] bool, true for rows that can do what the plan says."""
    size, num_rows = view.tree.num_nodes, plan.source.shape[0]
    known = (plan.token >= 0) & (plan.token < view.logits.shape[1])
    possible = known & _is_live(view, plan.source) & _is_own(view, plan)
    above = jnp.clip(plan.source - size, 0, num_rows - 1)
    earlier = known & (plan.source >= size)
    earlier &= plan.source - size < jnp.arange(num_rows, dtype=jnp.int32)
    for _ in range(draft_depth - 1):
        possible |= earlier & possible[above]
    return possible


def _is_own(view: View, plan: Plan) -> jax.Array:
    """Return [B] bool, false where a row continues a node of another request.

    Its source is then not below the root of the request that the row names, or that
    request is not in turn.
    """
    size = view.tree.num_nodes
    root = view.roots.at[plan.request].get(mode="fill", fill_value=size)
    first = view.tree.first.at[root].get(mode="fill", fill_value=size)
    end = view.tree.end.at[root].get(mode="fill", fill_value=0)
    number = view.tree.first[jnp.clip(plan.source, 0, size - 1)]
    inside = (first <= number) & (number < end)
    return inside


def _is_live(view: View, node: jax.Array) -> jax.Array:
    """Return [B] bool, true where `node` [B] int32 is the number of a live node."""
    size = view.tree.num_nodes
    inside = (node >= 0) & (node < size)
    return inside & (view.tree.first[jnp.clip(node, 0, size - 1)] < size)
