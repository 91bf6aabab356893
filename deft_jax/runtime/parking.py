"""Planner state of requests that are not in turn, which stays as it was."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from deft_jax.capacity import Capacity
from deft_jax.errors import DeftError
from deft_jax.runtime.state import DecodeState
from deft_jax.strategies.protocol import Planner
from deft_jax.tree.ownership import is_below


def keep_parked(
    planner: Planner, before: DecodeState, after: Any, requests: jax.Array
) -> Any:
    """Return a planner's state with what it held of parked requests before a burst.

    A planner is not shown requests that are preempted, and may take their rows for
    idle ones. Which of its arrays are over rows, requests or nodes is told by how their
    first axis follows the capacity.

    Args:
        planner: whose state it is.
        before: the state before the burst, all rows and roots in it.
        after: the planner's state after the burst.
        requests: [R] bool, the requests that were in turn.
    """
    size = before.tree.num_nodes
    is_parked = (before.roots < size) & ~requests
    slot = before.rows.request
    masks = {
        "rows": jnp.append(is_parked, False)[slot],
        "requests": is_parked,
        "nodes": is_below(before.tree, jnp.where(is_parked, before.roots, size)),
    }

    def keep(axis: str, old, new):
        if not axis:
            return new
        mask = masks[axis].reshape(-1, *(1,) * (new.ndim - 1))
        return jnp.where(mask, old, new)

    return jax.tree.map(keep, _axes(planner, before), before.planner, after)


def _axes(planner: Planner, state: DecodeState) -> Any:
    """Return what the first axis of each array of a planner's state is over.

    Returns:
        The planner's state with "rows", "requests", "nodes" or "" for each array.
    """
    capacity = Capacity(
        requests=state.roots.shape[0],
        rows=state.rows.node.shape[0],
        nodes=state.tree.num_nodes,
        pages=state.tree.num_pages,
        page_size=state.tree.page_size,
    )

    def shapes(**changes) -> Any:
        changed = dataclasses.replace(capacity, **changes)
        try:
            return jax.eval_shape(lambda: planner.init(changed))
        except DeftError:  # It serves one request alone: there is nothing to keep.
            return None

    now = shapes()
    larger = {
        "rows": shapes(rows=capacity.rows + 1),
        "requests": shapes(requests=capacity.requests + 1),
        "nodes": shapes(nodes=capacity.nodes + 1),
    }
    axes = jax.tree.map(lambda array: "", now)
    for name, changed in larger.items():
        if changed is not None:
            axes = jax.tree.map(
                lambda axis, one, other, name=name: (
                    axis if axis or one.shape[:1] == other.shape[:1] else name
                ),
                axes,
                now,
                changed,
            )
    return axes
