"""Chains of single children become one node each, when free nodes run short."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from deft_jax.runtime.state import DecodeState
from deft_jax.tree.counting import tally
from deft_jax.tree.ownership import is_below
from deft_jax.tree.relabel import collapse


def merge_chains(state: DecodeState) -> DecodeState:
    """Join chains of nodes if fewer nodes are free than the next step may take.

    A step adds at most a node per row. Nodes whose number is held by anyone keep it:
    roots of requests, nodes that rest or are kept, and nodes of rows. All other arrays
    over nodes stay as they are, for a chain has the number of its last node, and so its
    sampling key and the count of its children.
    """
    short = state.tree.num_free_nodes < state.rows.node.shape[0]

    def join(_, tree):
        return collapse(tree, _may_join(state))[0]

    # A loop of one step or none works in place; see `apply_plan`.
    tree = lax.fori_loop(0, short.astype(jnp.int32), join, state.tree)
    return dataclasses.replace(state, tree=tree)


def _may_join(state: DecodeState) -> jax.Array:
    """Return [N] bool, nodes that may take over their parent, as far as it is held."""
    size = state.tree.num_nodes
    is_root = tally(state.roots, size) > 0
    held = is_root | state.resting | state.keep | (tally(state.rows.node, size) > 0)
    parent = jnp.clip(state.tree.parent, 0, size - 1)
    # Nodes of requests that are not in turn are left alone.
    return is_below(state.tree, state.roots) & ~is_root & ~held[parent]
