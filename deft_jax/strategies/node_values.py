"""What nodes have for a planner before it, or the host, has said anything of them."""

from typing import Any

import jax
import jax.numpy as jnp

from deft_jax.strategies.protocol import Planner
from deft_jax.strategies.traits import may_wait, node_carry


def first_carry(planner: Planner, num_nodes: int) -> Any:
    """Return what so many nodes carry at first, each array [N, ...]; see `node_carry`.

    Args:
        planner: says what a node carries.
        num_nodes: `N`.
    """

    def repeat(value):
        value = jnp.asarray(value)
        return jnp.broadcast_to(value, (num_nodes, *value.shape))

    return jax.tree.map(repeat, node_carry(planner))


def first_score(planner: Planner, num_nodes: int) -> jax.Array | None:
    """Return [N] float32 NaN, since nothing is known of a node; see `may_wait`."""
    return jnp.full(num_nodes, jnp.nan) if may_wait(planner) else None
