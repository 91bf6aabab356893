"""The nodes of a step's rows: all levels of a draft tree are branched in one pass.

A row continues a node of the tree or the node of another row. Both are written as one
*code*: a code below N is a node of the tree, N + j stands for the node that row j adds.
The worked example of all functions here has N = 10, a root 0 of 3 tokens, and 4 rows:

    row                 0   1   2   3
    source              0  10  10  11        0 ─ row 0 ┬ row 1 ─ row 3
    branch              1   1   1   1                  └ row 2
    draft               0   1   1   1
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from deft_jax.tree.appending import storage_of
from deft_jax.tree.branching import NewNodes, branch, insert, take_nodes
from deft_jax.tree.state import NO_NODE, Tree, replace


class Growth(NamedTuple):
    """What each row of a step continues, and how.

    Attributes:
        source: [B] int32, node that the row continues; N + j stands for the node of
            row j of the same step, its token included; NO_NODE for none.
        branch: [B] bool, true to continue in a new child, false in the node itself.
        draft: [B] bool, true for children to be accepted or dropped later.
        shares: [B] bool, true for children that share the pages of their parent as
            drafts do; drafts alone if None.
    """

    source: jax.Array
    branch: jax.Array
    draft: jax.Array
    shares: jax.Array | None = None


def branch_rows(
    tree: Tree, growth: Growth, live: jax.Array, draft_depth: int
) -> tuple[Tree, jax.Array, jax.Array]:
    """Branch where the rows of a step say so.

    Args:
        tree: the forest.
        growth: what the rows continue; a source that is neither a live node nor a row
            makes the row idle.
        live: [B] bool, true for rows that take part; their source is not NO_NODE.
        draft_depth: levels of rows; rows that are further down have no node.

    Returns:
        The tree, [B] int32 the node of each row and [B] int32 the node into whose pages
        its token goes, N for rows without one. If too few nodes are free the tree is as
        it was but for its overflow bit, and no row that branches has a node. New nodes
        start behind the tokens that the rows above them get next: these are put in by
        `append_at_starts` or `fill`; `append` would count them again.
    """
    size = tree.num_nodes
    if draft_depth > 1:
        return _branch_levels(tree, growth, live, draft_depth)
    live &= growth.source < size
    tree, child = branch(
        tree, growth.source, live & growth.branch, growth.draft, growth.shares
    )
    node = jnp.where(live, jnp.where(growth.branch, child, growth.source), size)
    storage = storage_of(tree, node)
    return tree, jnp.where(storage < size, node, size), storage


class _Ancestry(NamedTuple):
    """Where the rows of a step come from; anything for rows without a node.

    Attributes:
        has_node: [B] bool, true for rows that get a node.
        is_new: [B] bool, true for rows that add one.
        anchor: [B] int32, node of the tree that the row's path leaves, or any node.
        level: [B] int32, rows of the step on the way from there.
        node: [B] int32 code, node of the row's token.
        parent: [B] int32 code, node that the row continues.
        trunk: [B] int32 code, new node that is the row's trunk, or a node of the tree
            that has the row's.
        home: [B] int32 code, new node into whose pages the row's token goes, or a node
            of the tree with the row's storage.
    """

    has_node: jax.Array
    is_new: jax.Array
    anchor: jax.Array
    level: jax.Array
    node: jax.Array
    parent: jax.Array
    trunk: jax.Array
    home: jax.Array


def _branch_levels(tree: Tree, growth: Growth, live: jax.Array, depth: int):
    """Do what `branch_rows` does where rows continue rows of the same growth.

    The tree is the one that branching level by level gives, where the tokens of a level
    count before the next one branches. In the example:

        span                4   2   1   1    new nodes in each subtree
        offset              1   2   4   3    depth-first: rows 0, 1, 3, 2
        start               3   4   4   5    each after the one token of its parent
    """
    size = tree.num_nodes
    rows = _find_ancestry(tree, growth, live, depth)
    taken, overflow = take_nodes(tree, rows.is_new, _count_earlier(rows))

    def node_of(code):
        return jnp.where(code < size, code, taken[_row(code, size)])

    def find(array, code):
        return jnp.where(code < size, array[jnp.minimum(code, size - 1)], node_of(code))

    storage = find(tree.storage, rows.home)
    way = _climb(rows.parent, size, depth - 1)
    span = _count_below(rows, way, size)
    gaps = _sum_along(_count_fed(rows), way, size)
    new = NewNodes(
        node=taken,
        parent=node_of(rows.parent),
        anchor_number=tree.first[rows.anchor],
        offset=_sum_along(_offset_siblings(rows, span), way, size),
        span=span,
        start=tree.start[rows.anchor] + tree.count[rows.anchor] + gaps,
        trunk=find(tree.trunk, rows.trunk),
        storage=storage,
    )
    node = jnp.where(rows.has_node, node_of(rows.node), size)
    storage = jnp.where(node < size, storage, size)
    return replace(insert(tree, new), overflow=overflow), node, storage


def _find_ancestry(
    tree: Tree, growth: Growth, live: jax.Array, depth: int
) -> _Ancestry:
    """Follow each row's sources up to the tree, through the rows it continues.

    way of the sources  0  10  10  11    one step up from the row itself
                        0   0   0  10    two steps
                        0   0   0   0    three: the anchor
    level               0   1   1   2    codes on the way that are rows
    trunk              10  10  10  10    up to the first row that is no draft
    home               10  10  10  10    up to the first that shares no pages
    """
    size = tree.num_nodes
    source = jnp.where(live, growth.source, NO_NODE)
    own = size + jnp.arange(source.shape[0], dtype=jnp.int32)
    way = _climb(source, size, depth)
    anchor, level = way[-1], jnp.sum(way >= size, axis=0, dtype=jnp.int32)
    safe = jnp.clip(anchor, 0, size - 1)
    has_node = (anchor == safe) & (tree.first[safe] < size)
    node = _climb(jnp.where(growth.branch, own, source), size, depth)[-1]
    splits = growth.branch & ~growth.draft
    trunk = home = _climb(jnp.where(splits, own, source), size, depth)[-1]
    if growth.shares is not None:
        splits &= ~growth.shares
        home = _climb(jnp.where(splits, own, source), size, depth)[-1]
    return _Ancestry(
        has_node=has_node,
        is_new=has_node & growth.branch,
        anchor=safe,
        level=level,
        node=node,
        parent=jnp.where(source < size, source, node[_row(source, size)]),
        trunk=trunk,
        home=home,
    )


def _climb(above: jax.Array, size: int, steps: int) -> jax.Array:
    """Return [steps, B] int32, the codes that 1, 2, ... steps up lead to.

        above 0 10 10 11, steps 3  ->  0 10 10 11 / 0 0 0 10 / 0 0 0 0
        above 0 12 11, steps 3     ->  0 12 11 / 0 11 12 / 0 12 11: rows in a circle

    Args:
        above: [B] int32 code that each row comes from; N + j leads on to row j, other
            codes end the way. Row j itself is N + j.
        size: N.
        steps: static, most steps; a gather each, of which a GPU makes one kernel.
    """
    at, way = above, [above]
    for _ in range(steps - 1):
        at = jnp.where(at < size, at, above[_row(at, size)])
        way.append(at)
    return jnp.stack(way)


def _row(code: jax.Array, size: int) -> jax.Array:
    """Return the row of each code; any row for a node of the tree."""
    return jnp.maximum(code - size, 0)


def _sum_along(value: jax.Array, way: jax.Array, size: int) -> jax.Array:
    """Return [B] int32, a value [B] summed up over each row and the new nodes above.

    value 1 1 3 1  ->  1 2 4 3     of row 3: its own 1, row 1's 1 and row 0's 1
    """
    above = jnp.where(way < size, 0, value[_row(way, size)])
    return value + jnp.sum(above, axis=0, dtype=jnp.int32)


def _comes_before(key: jax.Array) -> jax.Array:
    """Return [B, B] bool, true where row j comes before row i by key, then by row.

    key 1 0 1  ->  order 3 1 5, numbers that sort as (key, row) does
    """
    num_rows = key.shape[0]
    order = key * num_rows + jnp.arange(num_rows, dtype=jnp.int32)
    return order[None] < order[:, None]


def _count_earlier(rows: _Ancestry) -> jax.Array:
    """Return [B] int32, new nodes of earlier levels or of earlier rows of the level."""
    earlier = rows.is_new[None] & _comes_before(rows.level)
    return jnp.sum(earlier, axis=1, dtype=jnp.int32)


def _offset_siblings(rows: _Ancestry, span: jax.Array) -> jax.Array:
    """Return [B] int32, how far behind its parent each new node comes, from 1.

    Children of later levels come first, as each level is put before older children.

    parent 0 10 10 11, span 4 2 1 1  ->  1 1 3 1     row 2 behind row 1 and its child
    """
    sibling = rows.is_new[None] & (rows.parent[None] == rows.parent[:, None])
    ahead = jnp.where(sibling & _comes_before(-rows.level), span[None], 0)
    return 1 + jnp.sum(ahead, axis=1, dtype=jnp.int32)


def _count_below(rows: _Ancestry, way: jax.Array, size: int) -> jax.Array:
    """Return [B] int32, new nodes in the subtree of each new node, itself counted.

    way 0 10 10 11 / 0 0 0 10  ->  4 2 1 1     row 0 is 10: found 3 times, and itself
    """
    own = size + jnp.arange(way.shape[1], dtype=jnp.int32)
    below = rows.is_new[None, None] & (way[None] == own[:, None, None])
    return 1 + jnp.sum(below, axis=(1, 2), dtype=jnp.int32)


def _count_fed(rows: _Ancestry) -> jax.Array:
    """Return [B] int32, tokens that the levels above a row add to its parent.

    parent 0 10 10 11, node 10 11 12 13  ->  0 1 1 1     a token per new parent
    """
    feeds = rows.has_node[None] & (rows.node[None] == rows.parent[:, None])
    feeds &= rows.level[None] < rows.level[:, None]
    return jnp.sum(feeds, axis=1, dtype=jnp.int32)
