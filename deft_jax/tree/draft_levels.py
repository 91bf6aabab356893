"""The nodes of a step's rows: all levels of a draft tree are branched in one pass."""

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
            row j < own row of the same step, its token included; NO_NODE for none.
        branch: [B] bool, true to continue in a new child, false in the node itself.
        draft: [B] bool, true for children to be accepted or dropped later.
    """

    source: jax.Array
    branch: jax.Array
    draft: jax.Array


def branch_rows(
    tree: Tree, growth: Growth, live: jax.Array, draft_depth: int
) -> tuple[Tree, jax.Array, jax.Array]:
    """Branches where the rows of a step say so.

    Args:
        tree: the forest.
        growth: what the rows continue.
        live: [B] bool, rows that take part; `growth.source` is no NO_NODE there.
        draft_depth: levels of rows; rows that are further down have no node.

    Returns:
        The tree, [B] int32 the node of each row and [B] int32 the node that owns its
        pages, N for rows without one. If too few nodes are free the tree is as it was
        but for its overflow bit, and no row that branches has a node.
    """
    size = tree.num_nodes
    if draft_depth > 1:
        return _branch_levels(tree, growth, live, draft_depth)
    live &= growth.source < size
    tree, child = branch(tree, growth.source, live & growth.branch, growth.draft)
    node = jnp.where(live, jnp.where(growth.branch, child, growth.source), size)
    return tree, node, storage_of(tree, node)


class _Rows(NamedTuple):
    """What the rows of a step continue; of rows without a place anything.

    A *code* below N is a node of the tree; N + j stands for the node that row j adds.

    Attributes:
        placed: [B] bool, rows that get a node.
        new: [B] bool, rows that add one.
        anchor: [B] int32, node of the tree that the row's path leaves.
        level: [B] int32, rows of the step on the way from there.
        node: [B] int32 code, node of the row's token.
        parent: [B] int32 code, node that the row continues.
        trunk: [B] int32 code; as its storage, or itself if it is new.
    """

    placed: jax.Array
    new: jax.Array
    anchor: jax.Array
    level: jax.Array
    node: jax.Array
    parent: jax.Array
    trunk: jax.Array


def _branch_levels(tree: Tree, growth: Growth, live: jax.Array, depth: int):
    """`branch_rows` where rows continue rows of the same growth.

    The tree is the one that branching level by level gives.
    """
    size = tree.num_nodes
    rows = _resolve(growth, live, size, depth)
    number, overflow = take_nodes(tree, rows.new, _count_earlier(rows))

    def node_of(code):
        return jnp.where(code < size, code, number[_row(code, size)])

    trunk = jnp.minimum(rows.trunk, size - 1)
    owner = jnp.where(rows.trunk < size, tree.storage[trunk], node_of(rows.trunk))
    way = _climb(rows.parent, size, depth - 1)
    span = _spans(rows, way, size)
    anchor = jnp.clip(rows.anchor, 0, size - 1)
    new = NewNodes(
        node=number,
        parent=node_of(rows.parent),
        before=tree.first[anchor],
        offset=_along(_offsets(rows, span), way, size),
        span=span,
        start=tree.start[anchor] + tree.count[anchor] + _along(_gaps(rows), way, size),
        storage=owner,
    )
    node = jnp.where(rows.placed, node_of(rows.node), size)
    owner = jnp.where(node < size, owner, size)
    return replace(insert(tree, new), overflow=overflow), node, owner


def _resolve(growth: Growth, live: jax.Array, size: int, depth: int) -> _Rows:
    source = jnp.where(live, growth.source, NO_NODE)
    own = size + jnp.arange(source.shape[0], dtype=jnp.int32)
    way = _climb(source, size, depth)
    anchor, level = way[-1], jnp.sum(way >= size, axis=0, dtype=jnp.int32)
    placed = (anchor >= 0) & (anchor < size)
    node = _climb(jnp.where(growth.branch, own, source), size, depth)[-1]
    splits = growth.branch & ~growth.draft
    return _Rows(
        placed=placed,
        new=placed & growth.branch,
        anchor=anchor,
        level=level,
        node=node,
        parent=jnp.where(source < size, source, node[_row(source, size)]),
        trunk=_climb(jnp.where(splits, own, source), size, depth)[-1],
    )


def _climb(above: jax.Array, size: int, steps: int) -> jax.Array:
    """[steps, B] int32: where 1, 2, ... steps up lead from each row.

    Args:
        above: [B] int32, N + j for row j, a number below N for where the way ends.
        size: N.
        steps: static; a gather each, of which a GPU makes one kernel.
    """
    at, way = above, [above]
    for _ in range(steps - 1):
        at = jnp.where(at < size, at, above[_row(at, size)])
        way.append(at)
    return jnp.stack(way)


def _row(code: jax.Array, size: int) -> jax.Array:
    """The row of each code; any row for a node of the tree."""
    return jnp.maximum(code - size, 0)


def _along(value: jax.Array, way: jax.Array, size: int) -> jax.Array:
    """[B] int32: sums of a value [B] over each row and the new nodes above it."""
    above = jnp.where(way < size, 0, value[_row(way, size)])
    return value + jnp.sum(above, axis=0, dtype=jnp.int32)


def _count_earlier(rows: _Rows) -> jax.Array:
    """[B] int32: new nodes of earlier levels, or of earlier rows of the same level."""
    place = _ordered(rows, rows.level)
    earlier = rows.new[None] & (place[None] < place[:, None])
    return jnp.sum(earlier, axis=1, dtype=jnp.int32)


def _offsets(rows: _Rows, span: jax.Array) -> jax.Array:
    """[B] int32: places of new nodes below their parents, from 1.

    Children of later levels come first, as each level is put before older children.
    """
    place = _ordered(rows, -rows.level)
    sibling = rows.new[None] & (rows.parent[None] == rows.parent[:, None])
    ahead = jnp.where(sibling & (place[None] < place[:, None]), span[None], 0)
    return 1 + jnp.sum(ahead, axis=1, dtype=jnp.int32)


def _ordered(rows: _Rows, key: jax.Array) -> jax.Array:
    """[B] int32: numbers that order the rows by a key, then by row."""
    num_rows = key.shape[0]
    return key * num_rows + jnp.arange(num_rows, dtype=jnp.int32)


def _spans(rows: _Rows, way: jax.Array, size: int) -> jax.Array:
    """[B] int32: new nodes in the subtree of each new node, itself counted."""
    own = size + jnp.arange(way.shape[1], dtype=jnp.int32)
    below = rows.new[None, None] & (way[None] == own[:, None, None])
    return 1 + jnp.sum(below, axis=(1, 2), dtype=jnp.int32)


def _gaps(rows: _Rows) -> jax.Array:
    """[B] int32: tokens that the levels above a new node add to its parent."""
    feeds = rows.placed[None] & (rows.node[None] == rows.parent[:, None])
    feeds &= rows.level[None] < rows.level[:, None]
    return jnp.sum(feeds, axis=1, dtype=jnp.int32)
