"""What nodes carry for a planner: values that children start with as their parents do.

One step of two rows, which continue node 4 in new children 7 and 2 and say what the
first of them carries:

    carry[4] = 5   plan.carry 6 5   ->   carry[7] = 6, carry[2] = 5
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deft_jax.capacity import Capacity
from deft_jax.strategies.node_values import first_carry, first_score
from deft_jax.strategies.protocol import Plan, Planner, View
from deft_jax.strategies.traits import node_carry
from deft_jax.tree.state import Tree


class PlannerState(NamedTuple):
    """Everything on the device that is a planner's.

    Attributes:
        own: what its `init` and `plan` return.
        carry: what nodes carry, each array [N, ...]; () for a planner without.
        score: [N] float32, what the host has said of nodes, NaN for nothing; None for a
            planner that never waits.
    """

    own: Any
    carry: Any
    score: Any

    @classmethod
    def create(cls, planner: Planner, capacity: Capacity) -> "PlannerState":
        """Return the state before the first step."""
        size = capacity.nodes
        carry, score = first_carry(planner, size), first_score(planner, size)
        return cls(planner.init(capacity), carry, score)

    def seen(self, planner: Planner, view: View) -> View:
        """Return a view with what nodes carry; the root of a fresh row is as at first.

        Args:
            planner: whose state it is.
            view: what the planner sees otherwise.
        """
        root = jnp.where(view.is_fresh, view.node, view.tree.num_nodes)
        carry = jax.tree.map(
            lambda x, first: x.at[root].set(first, mode="drop"),
            self.carry,
            node_carry(planner),
        )
        score = self.score
        if score is not None:
            score = score.at[root].set(jnp.nan, mode="drop")
        return dataclasses.replace(view, carry=carry, score=score)


def grown(
    view: View, plan: Plan, before: Tree, node: jax.Array, own: Any, draft_depth: int
) -> PlannerState:
    """Return a planner's state after a plan that fits.

    Args:
        view: what the planner saw.
        plan: what is done.
        before: the forest before it.
        node: [B] int32, node of each row's token, N for none.
        own: what the planner returned.
        draft_depth: levels of rows that continue rows of the plan.
    """
    carry, score = view.carry, view.score
    if jax.tree.leaves(carry):
        carry = _accepted(carry, plan, before)
        given = plan.carry
        if given is None:
            given = _inherited(carry, plan, draft_depth)
        carry = jax.tree.map(
            lambda x, new: x.at[node].set(new, mode="drop"), carry, given
        )
    if score is not None:
        made = jnp.where(plan.branch, node, before.num_nodes)
        score = score.at[made].set(jnp.nan, mode="drop")
    return PlannerState(own, carry, score)


def _accepted(carry: Any, plan: Plan, before: Tree) -> Any:
    """Return what nodes carry after trunks took over the tips of accepted drafts."""
    size = before.num_nodes
    tip = jnp.clip(plan.accept, 0, size - 1)
    is_draft = (plan.accept >= 0) & before.is_draft[tip]
    trunk = jnp.where(is_draft, before.trunk[tip], size)
    return jax.tree.map(lambda x: x.at[trunk].set(x[tip], mode="drop"), carry)


def _inherited(carry: Any, plan: Plan, draft_depth: int) -> Any:
    """Return what each row continues carries, each array [B, ...].

    Args:
        carry: what nodes carry.
        plan: what the rows continue.
        draft_depth: levels of rows that continue rows of the plan.
    """

    def inherit(x):
        size = x.shape[0]
        of_node = x[jnp.clip(plan.source, 0, size - 1)]
        is_row = (plan.source >= size).reshape(-1, *(1,) * (x.ndim - 1))
        above = jnp.clip(plan.source - size, 0, plan.source.shape[0] - 1)
        rows = of_node
        for _ in range(draft_depth - 1):
            rows = jnp.where(is_row, rows[above], of_node)
        return rows

    return jax.tree.map(inherit, carry)
