"""Cutting nodes in two and joining chains of them, by new labels: no KV moves.

Both keep the numbers that are in use elsewhere. Whoever holds a node's number, such as
a row, a planner or the host, means the end of the node, where its next token goes. So
of the parts of a node that is split the last keeps its number, with its children, and a
chain that collapses takes the number of its last node.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from deft_jax.tree.arguments import integers, masks
from deft_jax.tree.branching import take_nodes
from deft_jax.tree.counting import count_nodes_below, largest
from deft_jax.tree.free_lists import push
from deft_jax.tree.state import NO_NODE, Tree, replace


class Relabelling(NamedTuple):
    """What happened to the numbers of nodes, for arrays that the tree does not hold.

    Attributes:
        origin: [N] int32, node whose values each node has from now on: of an array over
            nodes take `array[origin]`. The parts of a split node all have the whole's.
        heir: [N] int32, node that stands for each node from now on: of an array of
            node numbers take `follow(numbers)`. A node that was merged into the one
            below is that one; its end is then further down.
    """

    origin: jax.Array
    heir: jax.Array

    def follow(self, node: jax.Array) -> jax.Array:
        """Return the numbers [...] int32 that stand for nodes now.

        Args:
            node: [...] int32; N and NO_NODE stay as they are.
        """
        size = self.heir.shape[0]
        safe = jnp.clip(node, 0, size - 1)
        return jnp.where(node == safe, self.heir[safe], node)


class _Cuts(NamedTuple):
    """New nodes that a split makes, one per row; anything for rows without one.

    Attributes:
        made: [A] int32, number of the new node, N for none.
        node: [A] int32, node that is split.
        begin: [A] int32, tokens of the node before those of the new one.
        end: [A] int32, tokens of the node up to the last of the new one.
        above: [A] int32, number of the part above; NO_NODE if this is the first.
        earlier: [A] int32, new nodes above that are parts of the same.
    """

    made: jax.Array
    node: jax.Array
    begin: jax.Array
    end: jax.Array
    above: jax.Array
    earlier: jax.Array


def split(
    tree: Tree, node: jax.Array, at: jax.Array
) -> tuple[Tree, jax.Array, Relabelling]:
    """Split nodes, so that a place within a node becomes the end of one.

    The first tokens of a node go to a new node between it and its parent. The node
    keeps its number and its children, and with them its last tokens:

        node 3 of tokens a b c d e, at 2   ->   new 7: a b   3: c d e, its parent is 7
        rows (3, 2) and (3, 4)             ->   7: a b   8: c d   3: e

    A node may be split in several places, and in one place by several rows, which get
    the same new node. Parts of a draft are drafts. Pages stay where they are: of a node
    with pages of its own the first part takes these, and the others share them.

    A step compares every slot with every row: split few nodes at once.

    Args:
        tree: the forest.
        node: [A] int32, node to split; a number that is no live node makes the row
            idle.
        at: [A] int32, how many of the node's tokens come before the place. At all of
            them nothing is split, as the place is an end already; 0, or more than all,
            makes the row idle.

    Returns:
        The tree; [A] int32, node that ends at each row's place, N for idle rows; and
        the relabelling. If too few nodes are free the tree is as it was but for its
        overflow bit (OUT_OF_NODES), and rows that would need a new node have N.

    Raises:
        DeftError: the arrays are no integers of one length.
    """
    node = integers("node", node, "A")
    at = integers("at", at, node.shape[0])
    size = tree.num_nodes
    safe = jnp.clip(node, 0, size - 1)
    live = (node == safe) & (tree.first[safe] < size)
    inside = live & (at > 0) & (at < tree.count[safe])
    rows = jnp.arange(node.shape[0], dtype=jnp.int32)
    same = (node[:, None] == node[None]) & (at[:, None] == at[None])
    eldest = jnp.argmax(same & inside[None], axis=1)
    is_new = inside & (eldest == rows)
    index = jnp.cumsum(is_new, dtype=jnp.int32) - 1
    made, overflow = take_nodes(tree, is_new, index)
    ends_here = live & (at == tree.count[safe])
    result = jnp.where(inside, made[eldest], jnp.where(ends_here, node, size))
    changed, relabelling = _insert_parts(tree, _find_cuts(made, safe, at, size))
    return replace(changed, overflow=overflow), result, relabelling


def _find_cuts(made, node, at, size: int) -> _Cuts:
    """Return the new nodes with what is above each.

    made 7 8, node 3 3, at 2 4  ->  begin 0 2, end 2 4, above -1 7, earlier 0 1
    """
    before = (made < size)[None] & (node[None] == node[:, None])
    before &= at[None] < at[:, None]
    begin = jnp.max(jnp.where(before, at[None], 0), axis=1)
    is_above = before & (at[None] == begin[:, None])
    return _Cuts(
        made=made,
        node=node,
        begin=begin,
        end=at,
        above=jnp.max(jnp.where(is_above, made[None], NO_NODE), axis=1),
        earlier=jnp.sum(before, axis=1, dtype=jnp.int32),
    )


def _insert_parts(tree: Tree, cuts: _Cuts) -> tuple[Tree, Relabelling]:
    """Return the tree with the parts of its nodes, and the relabelling."""
    size, node = tree.num_nodes, cuts.node
    own = jnp.arange(size, dtype=jnp.int32)
    row = largest(cuts.made, size, jnp.arange(node.shape[0], dtype=jnp.int32))
    first, end, first_made = _number_parts(tree, cuts)
    cut, last, top = _find_wholes(cuts, size)
    # Pages of a node that has some of its own become those of its first part.
    home = jnp.where((top >= 0) & (tree.storage == own), top, own)
    home = jnp.append(home, jnp.int32(size))
    above = jnp.where(cuts.above >= 0, cuts.above, tree.parent[node])
    trunk = jnp.where(tree.is_draft[node], tree.trunk[node], cuts.made)

    def put(array, value):
        return jnp.where(row >= 0, value[jnp.maximum(row, 0)], array)

    changed = replace(
        tree,
        parent=put(jnp.where(last >= 0, last, tree.parent), above),
        first=put(first, first_made),
        end=put(end, end[node]),
        count=put(tree.count - cut, cuts.end - cuts.begin),
        start=put(tree.start + cut, tree.start[node] + cuts.begin),
        trunk=put(tree.trunk, trunk),
        storage=home[put(tree.storage, tree.storage[node])],
        page_owner=home[tree.page_owner],
        slot_node=_relabel_slots(tree, cuts),
        num_free_nodes=tree.num_free_nodes - jnp.sum(row >= 0, dtype=jnp.int32),
    )
    return changed, Relabelling(origin=put(own, node), heir=own)


def _number_parts(tree: Tree, cuts: _Cuts):
    """Return the depth-first numbers with the new nodes.

    These come right before the node that they are parts of:

        old nodes A B C     first 0 1 2, end 3 2 3     B and C are below A
        new X of B, Y of C  A X B Y C
                            first 0 2 4, end 5 3 5     of X 1 and 3, of Y 3 and 5

    Returns:
        [N] int32 first and end of the old nodes, and [A] int32 first of the new.
    """
    size, whole = tree.num_nodes, tree.first[cuts.node]
    comes_in_at = jnp.where(cuts.made < size, whole, size + 1)

    def count_before(bound):
        return count_nodes_below(comes_in_at, bound, size + 1)

    first = jnp.minimum(tree.first + count_before(tree.first + 1), size)
    end = jnp.minimum(tree.end + count_before(tree.end), size)
    return first, end, whole + count_before(whole) + cuts.earlier


def _find_wholes(cuts: _Cuts, size: int):
    """Return what becomes of each node that is split, [N] int32 each.

    made 7 8, node 3 3, begin 0 2, end 2 4  ->  of node 3: 4, 8 and 7

    Returns:
        The tokens that leave it, 0 for other nodes; the last of the new nodes, and the
        first of them, -1 for other nodes.
    """
    live = cuts.made < size

    def of_nodes(mask, value):
        return largest(jnp.where(live & mask, cuts.node, size), size, value)

    cut = jnp.maximum(of_nodes(True, cuts.end), 0)
    last = of_nodes(cuts.end == cut[cuts.node], cuts.made)
    return cut, last, of_nodes(cuts.begin == 0, cuts.made)


def _relabel_slots(tree: Tree, cuts: _Cuts) -> jax.Array:
    """Return `Tree.slot_node` [M, P] with the new nodes in the slots of their tokens.

    node 3 starts at 10, new node 7 of its tokens 0 to 2: positions 10 and 11
    """
    begin = (tree.start[cuts.node] + cuts.begin)[:, None, None]
    end = (tree.start[cuts.node] + cuts.end)[:, None, None]
    here = (cuts.made < tree.num_nodes)[:, None, None]
    here &= tree.slot_node[None] == cuts.node[:, None, None]
    here &= (begin <= tree.slot_position[None]) & (tree.slot_position[None] < end)
    made = jnp.max(jnp.where(here, cuts.made[:, None, None], NO_NODE), axis=0)
    return jnp.where(made >= 0, made, tree.slot_node)


def collapse(tree: Tree, mask: jax.Array) -> tuple[Tree, Relabelling]:
    """Join nodes to their parents where they are the only child.

    A chain becomes one node with the number of its last, and the numbers above are free
    again. Slots are relabelled, and pages of nodes above become those of the last node.
    Drafts are left as they are.

        A ─ B ─ C ┬ D      masked B, C, D, E: A and B join C; D and E have a sibling
                  └ E      C of all tokens ┬ D
                                           └ E

    Args:
        tree: the forest.
        mask: [N] bool, true for nodes that may take over their parent. Nobody may hold
            the number of such a parent: no row, no request as its root.

    Returns:
        The tree, and the relabelling.

    Raises:
        DeftError: the mask is no [N] bool.
    """
    size = tree.num_nodes
    joins = _find_joins(tree, masks("mask", mask, size))
    own = jnp.arange(size, dtype=jnp.int32)
    top, bottom = _find_chains(tree, joins)
    gone = tree.live & (bottom != own)
    heir = jnp.append(bottom, jnp.int32(size))
    kept = tree.live & ~gone
    number = jnp.where(kept, tree.first, size)
    free_nodes, num_free_nodes = push(
        tree.free_nodes, tree.num_free_nodes, gone, jnp.zeros_like(gone)
    )
    joined = replace(
        tree,
        parent=jnp.where(gone, NO_NODE, tree.parent[top]),
        first=jnp.where(kept, count_nodes_below(number, tree.first, size), size),
        end=jnp.where(kept, count_nodes_below(number, tree.end, size), size),
        count=jnp.where(gone, 0, tree.start + tree.count - tree.start[top]),
        start=tree.start[top],
        trunk=jnp.where(gone, size, heir[tree.trunk]),
        storage=jnp.where(gone, size, heir[tree.storage]),
        page_owner=heir[tree.page_owner],
        slot_node=heir[tree.slot_node],
        free_nodes=free_nodes,
        num_free_nodes=num_free_nodes,
    )
    return joined, Relabelling(origin=own, heir=bottom)


def _find_joins(tree: Tree, mask: jax.Array) -> jax.Array:
    """Return [N] bool, true for nodes that take over their parent.

    A node is an only child if it comes right behind its parent and they end together.
    """
    parent = jnp.clip(tree.parent, 0, tree.num_nodes - 1)
    only = (tree.parent >= 0) & (tree.first == tree.first[parent] + 1)
    only &= tree.end == tree.end[parent]
    draft = tree.is_draft
    return mask & tree.live & only & ~draft & ~draft[parent]


def _find_chains(tree: Tree, joins: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return [N] int32 twice, the first and the last node of each node's chain.

    The nodes of a chain have adjacent numbers, and all but the first join.

        number             0 1 2 3 4
        joins              0 1 1 0 1
        first of the chain 0 0 0 3 3     the last number so far that does not join
        last of it         2 2 2 4 4     the next number whose successor does not
    """
    size = tree.num_nodes
    own = jnp.arange(size, dtype=jnp.int32)
    node_at = jnp.maximum(largest(tree.first, size, own), 0)
    joins_at = joins[node_at] & (own < size - tree.num_free_nodes)
    next_joins = jnp.append(joins_at[1:], False)
    first = lax.cummax(jnp.where(joins_at, 0, own))
    last = lax.cummin(jnp.where(next_joins, size - 1, own), reverse=True)
    number = jnp.minimum(tree.first, size - 1)
    top, bottom = node_at[first[number]], node_at[last[number]]
    return jnp.where(tree.live, top, own), jnp.where(tree.live, bottom, own)
