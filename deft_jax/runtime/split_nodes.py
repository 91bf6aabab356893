"""Splitting nodes between bursts, so that a request can start within one."""

import dataclasses

import jax
import jax.numpy as jnp

from deft_jax.runtime.state import DecodeState
from deft_jax.tree.relabel import split


def split_nodes(
    state: DecodeState, node: jax.Array, at: jax.Array
) -> tuple[DecodeState, jax.Array]:
    """Split nodes of the forest, and carry all arrays over nodes along.

    Rows, roots, planners and the host hold the number of a node for its end, which the
    last part keeps. Of a request's root the first part is nobody's from then on. The
    parts of a node that rests rest as well; of a node that is kept the last is.

    Args:
        state: the state between two bursts.
        node: [A] int32, node to split, as `tree.relabel.split` takes it.
        at: [A] int32, how many of its tokens come before the place.

    Returns:
        The state, and [A] int32 the node that ends at each place, N for none. If too
        few nodes are free only the tree's overflow has changed.
    """
    tree, found, relabelling = split(state.tree, node, at)
    is_old = relabelling.origin == jnp.arange(tree.num_nodes)
    changed = dataclasses.replace(
        state,
        tree=tree,
        branch_keys=state.branch_keys.relabelled(relabelling),
        keep=state.keep & is_old,
        resting=state.resting[relabelling.origin],
    )
    return changed, found
