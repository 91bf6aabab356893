"""Removing nodes: what a search prunes, and drafts that are accepted or dropped."""

import jax
import jax.numpy as jnp

from deft_jax.tree.arguments import integers, masks
from deft_jax.tree.counting import count_nodes_below, largest, tally
from deft_jax.tree.state import NO_NODE, Tree, replace


def prune(tree: Tree, doomed: jax.Array, keep: jax.Array | None = None) -> Tree:
    """Free the subtrees of doomed nodes and every ancestor left without a leaf.

    Nodes that are not live may be masked; they change nothing.

    Args:
        tree: the forest.
        doomed: [N] bool, true for nodes to drop with all below them.
        keep: [N] bool, true for nodes that stay although no leaf is left below them,
            unless they are in a doomed subtree; none if None.

    Raises:
        DeftError: a mask is no [N] bool.
    """
    doomed, keep = _check_masks(tree, doomed, keep)
    none = jnp.zeros_like(doomed)
    nobody = jnp.full_like(tree.parent, tree.num_nodes)
    return _remove(tree, none, nobody, _find_bare(tree, tree.live, doomed, keep))


def accept(tree: Tree, tip: jax.Array) -> Tree:
    """Keep one path of each draft tree: its tokens become their trunk's own.

    The trunk of a draft is the node that owns its pages. Drafts of the same trunk that
    are not on the path from the trunk to the tip are dropped with all below them; their
    slots are used again by the next tokens of the trunk. No KV moves.

    The trunk grows, so of the nodes on the path the tip alone may have children that
    are no drafts: others would start before the trunk's new end. They are dropped with
    all below them; `check_plan` finds plans that would do so.

    Args:
        tree: the forest.
        tip: [A] int32, last accepted node of each path; a node that is no draft accepts
            none of its drafts; numbers that are no live node (NO_NODE, N) are ignored.
            Of several tips of one trunk the last in depth-first order counts.

    Raises:
        DeftError: `tip` is no integers.
    """
    tree, gone, heir = _merge(tree, integers("tip", tip, "A"))
    return _remove(tree, gone, heir, jnp.zeros_like(gone))


def accept_and_prune(
    tree: Tree, tip: jax.Array, doomed: jax.Array, keep: jax.Array | None
) -> Tree:
    """Do what `prune(accept(tree, tip), doomed, keep)` does, in one pass."""
    doomed, keep = _check_masks(tree, doomed, keep)
    tree, gone, heir = _merge(tree, integers("tip", tip, "A"))
    return _remove(tree, gone, heir, _find_bare(tree, tree.live & ~gone, doomed, keep))


def is_below(tree: Tree, top: jax.Array) -> jax.Array:
    """Return [N] bool, true for the live nodes in the subtrees of some nodes.

    first, end A 0 3, B 1 2, C 2 3, top B  ->  0 1 0

    Args:
        tree: the forest.
        top: [R] int32, live nodes, which count themselves; N for none.
    """
    size = tree.num_nodes
    first = tree.first.at[top].get(mode="fill", fill_value=size)
    end = tree.end.at[top].get(mode="fill", fill_value=0)
    number = tree.first[:, None]
    inside = (first[None] <= number) & (number < end[None])
    return jnp.any(inside, axis=1) & tree.live


def _check_masks(tree: Tree, doomed, keep):
    """Return both masks, or say what is wrong with them."""
    doomed = masks("doomed", doomed, tree.num_nodes)
    return doomed, None if keep is None else masks("keep", keep, tree.num_nodes)


def _merge(tree: Tree, tip: jax.Array) -> tuple[Tree, jax.Array, jax.Array]:
    """Give accepted drafts to their trunk, but for slots; say which nodes go.

    Returns:
        The tree, [N] bool, true for the nodes to remove, and [N] int32 their heirs.
    """
    size = tree.num_nodes
    tip = jnp.where(tip < 0, size, tip)
    trunk = tree.storage.at[tip].get(mode="fill", fill_value=size)
    # The depth-first number of each trunk's tip, then of each node's trunk's tip: the
    # drafts whose intervals hold it are on the path.
    #     trunk T 0-5, drafts X 1-4, Y 2-4, Z 3-4 and W 4-5, tip Y  ->  2 is in X, Y
    # T and X are above the tip: of their children only drafts may stay.
    goal = largest(trunk, size, tree.first.at[tip].get(mode="clip"))
    goal = goal.at[tree.storage].get(mode="fill", fill_value=-1)
    is_draft = tree.storage != jnp.arange(size)
    draft = is_draft & (goal >= 0)
    on_path = draft & (tree.first <= goal) & (goal < tree.end)
    parent = jnp.clip(tree.parent, 0, size - 1)
    above_tip = (tree.first < goal) & (goal < tree.end)
    overrun = (tree.parent >= 0) & above_tip[parent] & ~is_draft
    dead = _below(tree, (draft & ~on_path) | overrun)
    merged = on_path & ~dead

    gain = jnp.where(merged, tree.count, 0)
    count = tree.count + tally(tree.storage, size, gain)
    adopted = (tree.parent >= 0) & merged[parent]
    tree = replace(
        tree,
        count=count,
        parent=jnp.where(adopted, tree.storage[parent], tree.parent),
    )
    return tree, dead | merged, jnp.where(merged, tree.storage, size)


def _find_bare(
    tree: Tree, kept: jax.Array, doomed: jax.Array, keep: jax.Array | None
) -> jax.Array:
    """Return [N] bool, true for those of the kept nodes that `prune` drops."""
    dead = _below(tree, doomed & kept)
    leaf = kept & (_num_below(tree, kept) == 1)
    if keep is not None:
        leaf = leaf | (keep & kept)
    return kept & (_num_below(tree, leaf & ~dead) == 0)


def _below(tree: Tree, mask: jax.Array) -> jax.Array:
    """Return [N] bool, true for nodes that are masked or have a masked ancestor.

    These are inside more subtrees of masked nodes than have ended before them.

        first, end    A 0 3, B 1 2, C 2 3      C masked
        begun         0 0 1                    ended 0 0 0  ->  0 0 1
    """
    most = tree.num_nodes + 1
    begun = count_nodes_below(jnp.where(mask, tree.first, most), tree.first + 1, most)
    ended = count_nodes_below(jnp.where(mask, tree.end, most), tree.first + 1, most)
    return tree.live & (begun > ended)


def _num_below(tree: Tree, mask: jax.Array) -> jax.Array:
    """Return [N] int32, masked nodes in the subtree of each node, itself counted.

    first, end A 0 3, B 1 2, C 2 3, mask 0 1 1  ->  2 1 1: numbers 1, 2 within 0-3
    """
    size = tree.num_nodes
    number = jnp.where(mask, tree.first, size)
    return count_nodes_below(number, tree.end, size) - count_nodes_below(
        number, tree.first, size
    )


def _remove(tree: Tree, gone: jax.Array, heir: jax.Array, bare: jax.Array) -> Tree:
    """Free nodes and the pages they leave empty.

    Args:
        tree: the forest.
        gone: [N] bool, true for live nodes to free first.
        heir: [N] int32, node that takes over their tokens, N to drop them.
        bare: [N] bool, true for other live nodes to free then, with what they took
            over.
    """
    size = tree.num_nodes
    freed = gone | bare
    kept = tree.live & ~freed
    number = jnp.where(kept, tree.first, size)
    own = jnp.arange(size, dtype=jnp.int32)
    heir = jnp.append(jnp.where(gone, heir, own), jnp.int32(size))[tree.slot_node]
    slot_node = jnp.where(jnp.append(bare, False)[heir], size, heir)
    in_use = tree.page_owner < size
    empty_first = jnp.all(heir == size, axis=1)
    empty = jnp.all(slot_node == size, axis=1) & in_use
    free_nodes, num_free_nodes = _push(
        tree.free_nodes, tree.num_free_nodes, freed, gone
    )
    free_pages, num_free_pages = _push(
        tree.free_pages, tree.num_free_pages, empty, empty & empty_first
    )
    return replace(
        tree,
        parent=jnp.where(freed, NO_NODE, tree.parent),
        first=jnp.where(kept, count_nodes_below(number, tree.first, size), size),
        end=jnp.where(kept, count_nodes_below(number, tree.end, size), size),
        count=jnp.where(freed, 0, tree.count),
        storage=jnp.where(freed, size, tree.storage),
        page_owner=jnp.where(empty, size, tree.page_owner),
        slot_node=slot_node,
        free_nodes=free_nodes,
        num_free_nodes=num_free_nodes,
        free_pages=free_pages,
        num_free_pages=num_free_pages,
    )


def _push(
    stack: jax.Array, height: jax.Array, freed: jax.Array, first: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Put numbers on a free list, those that are freed first below the others.

        stack 7 6 . . ., height 2, freed 1 1 0 1 0, first 0 1 0 0 0
        running counts of first 0 1 1 1 1, of the others 1 1 1 2 2
        index 3 2 . 4 .  ->  7 6 1 0 3, height 5

    Args:
        stack: [n] int32, the free list.
        height: [] int32, how many of its entries are free.
        freed: [n] bool, true for numbers to put on it.
        first: [n] bool, true for those of them that come first.

    Returns:
        The list and its new height.
    """
    count = jnp.cumsum(jnp.stack([first, freed & ~first]), axis=1, dtype=jnp.int32)
    index = height + jnp.where(first, count[0], count[0, -1] + count[1]) - 1
    at = jnp.where(freed, index, stack.shape[0])
    items = jnp.arange(stack.shape[0], dtype=jnp.int32)
    height += jnp.sum(freed, dtype=jnp.int32)
    return stack.at[at].set(items, mode="drop"), height
