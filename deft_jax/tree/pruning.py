"""Removing nodes: what a search prunes, and drafts that are accepted or dropped."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from deft_jax.tree.arguments import integers, masks
from deft_jax.tree.counting import count_nodes_below, largest, tally
from deft_jax.tree.free_lists import push
from deft_jax.tree.ownership import below, num_below
from deft_jax.tree.state import NO_NODE, Tree, replace


class Staying(NamedTuple):
    """What stays when nodes are pruned, though no leaf is left below it.

    Attributes:
        keep: [N] bool, true for nodes that stay unless they are in a doomed subtree;
            none if None.
        resting: [N] bool, true for nodes that stay whatever is doomed, with all above
            them: those that outlive requests; none if None.
        roots: [R] int32, root of each request slot, N for free slots. A doomed node
            takes with it what its own request owns (`owned`), not what other requests
            have started below it. Everything below it if None.
    """

    keep: jax.Array | None = None
    resting: jax.Array | None = None
    roots: jax.Array | None = None


def prune(
    tree: Tree,
    doomed: jax.Array,
    keep: jax.Array | None = None,
    *,
    resting: jax.Array | None = None,
    roots: jax.Array | None = None,
) -> Tree:
    """Free the subtrees of doomed nodes and every ancestor left without a leaf.

    Nodes that are not live may be masked; they change nothing. To end a request, doom
    its root: with `resting` and `roots` the nodes stay that are more than its own.

    Args:
        tree: the forest.
        doomed: [N] bool, true for nodes to drop with all below them.
        keep: [N] bool, true for nodes that stay although no leaf is left below them,
            unless they are in a doomed subtree; none if None.
        resting: [N] bool, true for nodes that stay even in a doomed subtree, with all
            above them; none if None.
        roots: [R] int32, root of each request slot, N for free slots. A doomed node
            then takes no node with it that another request owns. All if None.

    Raises:
        DeftError: a mask is no [N] bool, or `roots` no integers.
    """
    staying = Staying(keep, resting, roots)
    doomed, staying = _check_masks(tree, doomed, staying)
    none = jnp.zeros_like(doomed)
    nobody = jnp.full_like(tree.parent, tree.num_nodes)
    return _remove(tree, none, nobody, _find_bare(tree, tree.live, doomed, staying))


def accept(tree: Tree, tip: jax.Array) -> Tree:
    """Keep one path of each draft tree: its tokens become their trunk's own.

    The trunk of a draft is its nearest ancestor that is none. Drafts of the same trunk
    that are not on the path from the trunk to the tip are dropped with all below them;
    their slots are used again by the next tokens of the trunk. No KV moves.

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
    tree: Tree, tip: jax.Array, doomed: jax.Array, staying: Staying
) -> Tree:
    """Do what `prune(accept(tree, tip), doomed, *staying)` does, in one pass."""
    doomed, staying = _check_masks(tree, doomed, staying)
    tree, gone, heir = _merge(tree, integers("tip", tip, "A"))
    bare = _find_bare(tree, tree.live & ~gone, doomed, staying)
    return _remove(tree, gone, heir, bare)


def _check_masks(tree: Tree, doomed, staying: Staying):
    """Return the masks and the roots, or say what is wrong with them."""
    size = tree.num_nodes
    keep, resting, roots = staying
    return masks("doomed", doomed, size), Staying(
        None if keep is None else masks("keep", keep, size),
        None if resting is None else masks("resting", resting, size),
        None if roots is None else integers("roots", roots, "R"),
    )


def _merge(tree: Tree, tip: jax.Array) -> tuple[Tree, jax.Array, jax.Array]:
    """Give accepted drafts to their trunk, but for slots; say which nodes go.

    Returns:
        The tree, [N] bool, true for the nodes to remove, and [N] int32 their heirs.
    """
    size = tree.num_nodes
    tip = jnp.where(tip < 0, size, tip)
    trunk = tree.trunk.at[tip].get(mode="fill", fill_value=size)
    # The depth-first number of each trunk's tip, then of each node's trunk's tip: the
    # drafts whose intervals hold it are on the path.
    #     trunk T 0-5, drafts X 1-4, Y 2-4, Z 3-4 and W 4-5, tip Y  ->  2 is in X, Y
    # T and X are above the tip: of their children only drafts may stay.
    goal = largest(trunk, size, tree.first.at[tip].get(mode="clip"))
    goal = goal.at[tree.trunk].get(mode="fill", fill_value=-1)
    is_draft = tree.trunk != jnp.arange(size)
    draft = is_draft & (goal >= 0)
    on_path = draft & (tree.first <= goal) & (goal < tree.end)
    parent = jnp.clip(tree.parent, 0, size - 1)
    above_tip = (tree.first < goal) & (goal < tree.end)
    overrun = (tree.parent >= 0) & above_tip[parent] & ~is_draft
    dead = below(tree, (draft & ~on_path) | overrun)
    merged = on_path & ~dead

    gain = jnp.where(merged, tree.count, 0)
    count = tree.count + tally(tree.trunk, size, gain)
    adopted = (tree.parent >= 0) & merged[parent]
    tree = replace(
        tree,
        count=count,
        parent=jnp.where(adopted, tree.trunk[parent], tree.parent),
    )
    return tree, dead | merged, jnp.where(merged, tree.trunk, size)


def _find_bare(
    tree: Tree, kept: jax.Array, doomed: jax.Array, staying: Staying
) -> jax.Array:
    """Return [N] bool, true for those of the kept nodes that `prune` drops."""
    dead = below(tree, doomed & kept, staying.roots)
    stays = kept & (num_below(tree, kept) == 1)
    if staying.keep is not None:
        stays |= staying.keep & kept
    stays &= ~dead
    if staying.resting is not None:
        stays |= staying.resting & kept
    return kept & (num_below(tree, stays) == 0)


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
    free_nodes, num_free_nodes = push(tree.free_nodes, tree.num_free_nodes, freed, gone)
    free_pages, num_free_pages = push(
        tree.free_pages, tree.num_free_pages, empty, empty & empty_first
    )
    return replace(
        tree,
        parent=jnp.where(freed, NO_NODE, tree.parent),
        first=jnp.where(kept, count_nodes_below(number, tree.first, size), size),
        end=jnp.where(kept, count_nodes_below(number, tree.end, size), size),
        count=jnp.where(freed, 0, tree.count),
        trunk=jnp.where(freed, size, tree.trunk),
        storage=jnp.where(freed, size, tree.storage),
        page_owner=jnp.where(empty, size, tree.page_owner),
        slot_node=slot_node,
        free_nodes=free_nodes,
        num_free_nodes=num_free_nodes,
        free_pages=free_pages,
        num_free_pages=num_free_pages,
    )
