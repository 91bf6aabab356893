"""Trees that are given by their levels, as states of a forest.

Every level has some number of nodes of one length, and the children of a level are
spread evenly over the nodes above. The arrays are filled by numpy in one go: a tree of
a thousand leaves takes milliseconds, where appending its tokens would take minutes.
"""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from deft_jax.tree.appending import Slots
from deft_jax.tree.state import NO_NODE, Tree


def level_tree(
    nodes: Sequence[int],
    tokens_per_node: Sequence[int],
    page_size: int,
    *,
    drafts: bool = False,
    seed: int = 0,
) -> tuple[Tree, Slots]:
    """Return a tree after one step that appended the last token of every leaf.

    Nodes are numbered level by level; the capacities for nodes and pages are what the
    tree needs. Node `j` of a level has the parent `j * n // m`, where the level has `m`
    nodes and the one above `n`.

    Args:
        nodes: nodes of each level, one in the first.
        tokens_per_node: tokens of each node of a level, at least one.
        page_size: token slots of a page.
        drafts: true if the nodes below the root are drafts, whose tokens are stored in
            the root's pages.
        seed: seed of the order of the pages, which is shuffled.

    Returns:
        The tree, and the slots of the queries: row `i` is the last token of leaf `i`.
    """
    bounds = [0, *itertools.accumulate(nodes)]
    levels = [slice(*bound) for bound in itertools.pairwise(bounds)]
    parent = _parents(levels)
    first, end = _depth_first_numbers(parent, levels)
    count = np.repeat(tokens_per_node, nodes)
    above = np.cumsum(tokens_per_node) - tokens_per_node
    start = np.repeat(above, nodes)
    size = len(parent)
    storage = np.zeros(size, int) if drafts else np.arange(size)

    node = np.repeat(np.arange(size), count)
    owner, place = _places(storage[node], size, page_size, seed)
    num_pages = len(owner)
    position = np.arange(len(node)) - (np.cumsum(count) - count - start)[node]
    slot_node = np.full((num_pages, page_size), size)
    slot_node[place] = node
    slot_position = np.zeros_like(slot_node)
    slot_position[place] = position
    tree = Tree(
        parent=_array(parent),
        first=_array(first),
        end=_array(end),
        count=_array(count),
        start=_array(start),
        trunk=_array(storage),
        storage=_array(storage),
        page_owner=_array(owner),
        slot_node=_array(slot_node),
        slot_position=_array(slot_position),
        slot_token=_array(np.zeros_like(slot_node)),
        free_nodes=_array(np.zeros(size)),
        num_free_nodes=jnp.int32(0),
        free_pages=_array(np.zeros(num_pages)),
        num_free_pages=jnp.int32(0),
        overflow=jnp.int32(0),
    )
    leaf = np.arange(size)[levels[-1]]
    last = np.cumsum(count)[leaf] - 1
    fields = (leaf, place[0][last], place[1][last], position[last])
    return tree, Slots(*map(_array, fields))


def _parents(levels: list[slice]) -> np.ndarray:
    """Return [N] int32, the parents of all nodes.

    nodes 1 2 3  ->  -1, 0 0, 1 1 2
    """
    parent = np.full(levels[-1].stop, NO_NODE)
    for above, level in itertools.pairwise(levels):
        width, width_above = level.stop - level.start, above.stop - above.start
        parent[level] = above.start + np.arange(width) * width_above // width
    return parent


def _depth_first_numbers(parent: np.ndarray, levels: list[slice]):
    """Return [N] int32 twice: what `Tree.first` and `Tree.end` hold."""
    size = np.ones(len(parent), int)
    for level in reversed(levels[1:]):
        np.add.at(size, parent[level], size[level])
    first = np.zeros(len(parent), int)
    for level in levels[1:]:
        above = parent[level]
        before = np.cumsum(size[level]) - size[level]
        eldest = np.searchsorted(above, above)
        first[level] = first[above] + 1 + before - before[eldest]
    return first, first + size


def _places(storage: np.ndarray, num_nodes: int, page_size: int, seed: int):
    """Pack the tokens of each storage node into pages of its own.

    Args:
        storage: [tokens], storage node of each token.
        num_nodes: number of the tree's nodes.
        page_size: token slots of a page.
        seed: seed of the order of the pages.

    Returns:
        `Tree.page_owner`, and the page [tokens] and slot [tokens] of each token.
    """
    held = np.bincount(storage, minlength=num_nodes)
    line = np.argsort(storage, kind="stable")
    nth = np.empty_like(line)
    nth[line] = np.arange(len(line)) - (np.cumsum(held) - held)[storage[line]]
    pages = -(-held // page_size)
    shuffled = np.random.default_rng(seed).permutation(pages.sum())
    owner = np.empty_like(shuffled)
    owner[shuffled] = np.repeat(np.arange(num_nodes), pages)
    page = shuffled[(np.cumsum(pages) - pages)[storage] + nth // page_size]
    return owner, (page, nth % page_size)


def _array(values: np.ndarray):
    return jnp.asarray(values, jnp.int32)
