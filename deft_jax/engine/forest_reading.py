"""The host reads from the device which tokens the nodes of the forest hold."""

from collections.abc import Collection
from typing import NamedTuple

import jax
import numpy as np

from deft_jax.tree.state import Tree


class NodeTokens(NamedTuple):
    """A node as the device has it.

    Attributes:
        node: number of the node.
        parent: number of the node above, NO_NODE for none.
        tokens: its tokens that have KV.
    """

    node: int
    parent: int
    tokens: list[int]


def read_subtrees(tree: Tree, tops: Collection[int]) -> list[NodeTokens]:
    """Return the nodes of some subtrees, parents before their children.

    It waits for the device, and copies the arrays of the tree: for requests that end
    or are preempted, not for every burst.

    Args:
        tree: the forest on the device.
        tops: live nodes at the heads of the subtrees.
    """
    arrays = (tree.parent, tree.first, tree.end)
    slots = (tree.slot_node, tree.slot_position, tree.slot_token)
    (parent, first, end), (node, position, token) = jax.device_get((arrays, slots))
    size = tree.num_nodes
    wanted = np.zeros(size + 1, bool)
    for top in tops:
        wanted[:size] |= (first >= first[top]) & (first < end[top])
    here = wanted[node]
    node, position, token = node[here], position[here], token[here]
    order = np.lexsort((position, node))
    node, token = node[order], token[order]
    nodes = np.flatnonzero(wanted)
    nodes = nodes[np.argsort(first[nodes])].tolist()
    begins = np.searchsorted(node, nodes).tolist()
    ends = np.searchsorted(node, nodes, side="right").tolist()
    return [
        NodeTokens(number, int(parent[number]), token[a:b].tolist())
        for number, a, b in zip(nodes, begins, ends, strict=True)
    ]
