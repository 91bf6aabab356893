"""A planner's state of its own requests alone, also of those that are not in turn."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from deft_jax.capacity import Capacity
from deft_jax.errors import DeftError
from deft_jax.runtime.node_carry import PlannerState
from deft_jax.runtime.state import DecodeState, Turn
from deft_jax.strategies.protocol import Planner
from deft_jax.tree.ownership import is_below


def clear_strangers(planner: Planner, state: DecodeState, turn: Turn) -> PlannerState:
    """Return a planner's state without what it holds of requests that are not in turn.

    A slot or a node of a request that has ended may be another's by now, of another
    planner or one whose prompt is still being fed; and a planner must not go on with
    the nodes of a parked request. Their entries are as at first.

    Args:
        planner: whose state it is.
        state: the state before a burst, all rows and roots in it.
        turn: which requests are in turn, and which are parked.
    """
    capacity = _capacity_of(state)
    roots = jnp.where(turn.requests, state.roots, state.tree.num_nodes)
    masks = {
        "rows": ~jnp.append(turn.parked, False)[state.rows.request],
        "requests": turn.requests,
        "nodes": is_below(state.tree, roots),
    }

    def clear(axis: str, now, first):
        return _choose(masks[axis], now, first) if axis in masks else now

    axes = _axes(planner, capacity)
    first = PlannerState.create(planner, capacity)
    return jax.tree.map(clear, axes, state.planner, first)


def keep_parked(planner: Planner, before: DecodeState, after: Any, turn: Turn) -> Any:
    """Return a planner's state with what it held of parked requests before a burst.

    A planner is not shown requests that are preempted, and may take their rows for
    idle ones. Which of its arrays are over rows, requests or nodes is told by how their
    first axis follows the capacity.

    Args:
        planner: whose state it is.
        before: the state before the burst, all rows and roots in it.
        after: the planner's state after the burst.
        turn: which requests are parked.
    """
    roots = jnp.where(turn.parked, before.roots, before.tree.num_nodes)
    masks = {
        "rows": jnp.append(turn.parked, False)[before.rows.request],
        "requests": turn.parked,
        "nodes": is_below(before.tree, roots),
    }

    def keep(axis: str, old, new):
        return _choose(masks[axis], old, new) if axis in masks else new

    axes = _axes(planner, _capacity_of(before))
    return jax.tree.map(keep, axes, before.planner, after)


def _choose(mask: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    """Return one array where the first axis is masked, the other elsewhere."""
    return jnp.where(mask.reshape(-1, *(1,) * (no.ndim - 1)), yes, no)


def _capacity_of(state: DecodeState) -> Capacity:
    """Return the capacity of a state, but for the tokens of a chunk."""
    return Capacity(
        requests=state.roots.shape[0],
        rows=state.rows.node.shape[0],
        nodes=state.tree.num_nodes,
        pages=state.tree.num_pages,
        page_size=state.tree.page_size,
    )


def _axes(planner: Planner, capacity: Capacity) -> Any:
    """Return what the first axis of each array of a planner's state is over.

    Returns:
        The planner's state with "rows", "requests", "nodes" or "" for each array. An
        array with some entries more than there are rows, requests or nodes is "".
    """
    sizes = {name: getattr(capacity, name) for name in ("rows", "requests", "nodes")}

    def shapes(**changes) -> Any:
        changed = dataclasses.replace(capacity, **changes)
        try:
            return jax.eval_shape(lambda: PlannerState.create(planner, changed))
        except DeftError:  # It serves one request alone: there is nothing to keep.
            return None

    now = shapes()
    axes = jax.tree.map(lambda array: "", now)
    for name, size in sizes.items():
        changed = shapes(**{name: size + 1})
        if changed is not None:
            axes = jax.tree.map(
                lambda axis, one, other, name=name, size=size: (
                    name
                    if one.shape[:1] == (size,) and one.shape[:1] != other.shape[:1]
                    else axis
                ),
                axes,
                now,
                changed,
            )
    return axes
