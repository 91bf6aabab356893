"""Which queries see a slot of the KV pool: ranks of queries, and ranges of ranks."""

import jax
import jax.numpy as jnp
from jax import lax

from deft_jax.tree.appending import Slots
from deft_jax.tree.counting import compares, count_below, earlier_equal
from deft_jax.tree.state import Tree


def query_ranks(tree: Tree, node: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the depth-first ranks of query tokens: by node, then by row.

        depth-first number of the row's node   2 0 2 N 1
        rank                                   2 0 3 4 1

    Args:
        tree: the forest.
        node: [Q] int32, node of each row, N for idle rows.

    Returns:
        number: [Q] int32, depth-first number of each row's node, N for idle rows.
        rank: [Q] int32, a permutation; idle rows come last.
    """
    size = tree.num_nodes
    number = tree.first[jnp.minimum(node, size - 1)]
    number = jnp.where(node < size, number, size)
    below = jnp.sum(number[None] < number[:, None], axis=1, dtype=jnp.int32)
    return number, below + earlier_equal(number, jnp.ones_like(node, bool))


def slot_ranges(tree: Tree, number: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return first and end [M, P] int32 of the ranks below each slot's node.

    A slot without a node has an empty range.

    Args:
        tree: the forest.
        number: [Q] int32, depth-first number of each row's node, N for idle rows.
    """
    first, end = _node_ranges(tree, number)
    return first[tree.slot_node], end[tree.slot_node]


def _node_ranges(tree: Tree, number):
    """Return first and end [N + 1] int32 of the ranks below each node.

    Entry N, the node of empty slots, has none. A node whose depth-first numbers are
    `first : end` holds the ranks of the rows with such numbers: as many ranks come
    before them as there are rows with a number below `first`.
    """
    first, end = (jnp.append(x, jnp.int32(0)) for x in (tree.first, tree.end))
    size = tree.num_nodes
    return count_below(number, first, size), count_below(number, end, size)


def _first_positions(tree: Tree, slots: Slots, number):
    """Return the position [N + 1] int32 of the first query token of each node.

    It is the largest int32 for nodes without a query token, and for the node of empty
    slots, entry N, which gets a number that no row has.
    """
    largest = jnp.iinfo(jnp.int32).max
    first = jnp.append(tree.first, jnp.int32(tree.num_nodes + 1))
    if compares(number.size, first.size):
        own = number[None] == first[:, None]
        return jnp.min(jnp.where(own, slots.position[None], largest), axis=1)
    position = jnp.full(tree.num_nodes + 2, largest)
    return position.at[number].min(slots.position)[first]


def see_slots(tree: Tree, slots: Slots, number):
    """Return `Grouping.slot_first` and `slot_end`.

    The query tokens of a node are its last, in row order, so that their positions give
    their ranks. A node with tokens at positions 4 5 6 7, of which 6 and 7 are queries,
    and the ranks 3 4 below it:

        position                 4 5 6 7
        beyond the first query   0 0 0 1    position - 6, at least 0
        slot_first               3 3 3 4
        slot_end                 5 5 5 5
    """
    nodes = *_node_ranges(tree, number), _first_positions(tree, slots, number)
    # Computed once, not for each slot, whatever the compiler makes of few queries.
    first, end, position = (x[tree.slot_node] for x in lax.optimization_barrier(nodes))
    return first + jnp.maximum(tree.slot_position - position, 0), end
