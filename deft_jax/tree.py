"""The decoding tree: a forest of nodes whose tokens live in pages, all on the device.

Every array has a capacity as its shape: `N` nodes, `M` pages of `P` token slots. Nodes
are numbered in depth-first order by `first` and `end`: the subtree of `x` is the nodes
`y` with `first[x] <= first[y] < end[x]`. Branching and pruning shift these numbers with
prefix sums, so that no operation walks the tree and none moves a token's KV.

Two sentinels: `NO_NODE` (-1) is compared with (a root has no parent); the capacity, `N`
or `M`, marks a free slot or an idle row in arrays that are used as scatter indices,
where mode="drop" ignores it.
"""

import dataclasses

import jax
import jax.numpy as jnp

NO_NODE = -1
"""Parent of a root; "no node" wherever node numbers are compared."""

OUT_OF_NODES = 1
"""Bit of `Tree.overflow`: a branch did not find enough free nodes."""

OUT_OF_PAGES = 2
"""Bit of `Tree.overflow`: an append did not find enough free pages."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tree:
    """State of a forest. Free nodes and pages are kept as stacks.

    Attributes:
        parent: [N] int32, parent node, NO_NODE for roots and free nodes.
        first: [N] int32, depth-first number of a live node, N for free nodes.
        end: [N] int32, one past the depth-first number of the subtree's last node.
        count: [N] int32, tokens in the node.
        start: [N] int32, position along the path of the node's first token.
        storage: [N] int32, node that owns the pages with this node's tokens: itself,
            or for a draft the nearest ancestor that is none; N for free nodes.
        page_owner: [M] int32, node that owns the page, N for free pages.
        slot_node: [M, P] int32, node of the token in the slot, N for empty slots.
        slot_position: [M, P] int32, position of that token along its path.
        slot_token: [M, P] int32, token id.
        free_nodes: [N] int32, the first `num_free_nodes` are free.
        num_free_nodes: [] int32.
        free_pages: [M] int32, the first `num_free_pages` are free.
        num_free_pages: [] int32.
        overflow: [] int32, bits OUT_OF_NODES and OUT_OF_PAGES of what was refused.
    """

    parent: jax.Array
    first: jax.Array
    end: jax.Array
    count: jax.Array
    start: jax.Array
    storage: jax.Array
    page_owner: jax.Array
    slot_node: jax.Array
    slot_position: jax.Array
    slot_token: jax.Array
    free_nodes: jax.Array
    num_free_nodes: jax.Array
    free_pages: jax.Array
    num_free_pages: jax.Array
    overflow: jax.Array

    @classmethod
    def create(cls, num_nodes: int, num_pages: int, page_size: int) -> "Tree":
        """An empty forest.

        Raises:
            ValueError: a capacity is below 1.
        """
        for name, value in [
            ("num_nodes", num_nodes),
            ("num_pages", num_pages),
            ("page_size", page_size),
        ]:
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

        def nodes(value):
            return jnp.full(num_nodes, value, jnp.int32)

        def slots(value):
            return jnp.full((num_pages, page_size), value, jnp.int32)

        return cls(
            parent=nodes(NO_NODE),
            first=nodes(num_nodes),
            end=nodes(num_nodes),
            count=nodes(0),
            start=nodes(0),
            storage=nodes(num_nodes),
            page_owner=jnp.full(num_pages, num_nodes, jnp.int32),
            slot_node=slots(num_nodes),
            slot_position=slots(0),
            slot_token=slots(0),
            free_nodes=jnp.arange(num_nodes, dtype=jnp.int32)[::-1],
            num_free_nodes=jnp.int32(num_nodes),
            free_pages=jnp.arange(num_pages, dtype=jnp.int32)[::-1],
            num_free_pages=jnp.int32(num_pages),
            overflow=jnp.int32(0),
        )

    @property
    def num_nodes(self) -> int:
        """`N`, the most nodes that can live at once."""
        return self.parent.shape[0]

    @property
    def num_pages(self) -> int:
        """`M`, the pages of the pool."""
        return self.slot_node.shape[0]

    @property
    def page_size(self) -> int:
        """`P`, the token slots of a page."""
        return self.slot_node.shape[1]

    @property
    def live(self) -> jax.Array:
        """[N] bool, true for nodes in use."""
        return self.first < self.num_nodes

    @property
    def page_fill(self) -> jax.Array:
        """[M] int32, tokens in each page."""
        return jnp.sum(self.slot_node < self.num_nodes, axis=1, dtype=jnp.int32)


def replace(tree: Tree, **changes) -> Tree:
    """`dataclasses.replace` under a short name."""
    return dataclasses.replace(tree, **changes)


def choose(condition: jax.Array, yes, no):
    """`jnp.where` over two pytrees of one structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def exclusive_cumsum(x: jax.Array) -> jax.Array:
    """[n] to [n + 1]: entry `i` is the sum of the `i` first; the last is the total."""
    return jnp.concatenate([jnp.zeros(1, x.dtype), jnp.cumsum(x, dtype=x.dtype)])


def earlier_equal(key: jax.Array, mask: jax.Array) -> jax.Array:
    """[n] int32: how many earlier rows of `mask` have the same key.

    key 5 7 5 5, mask 1 1 0 1  ->  0 0 1 1
    """
    rows = jnp.arange(key.shape[0])
    same = (key[:, None] == key[None, :]) & mask[None, :]
    return jnp.sum(same & (rows[:, None] > rows[None, :]), axis=1, dtype=jnp.int32)


def sum_before(x: jax.Array) -> jax.Array:
    """[..., n] int32: sums of the earlier entries along the last axis; true counts 1.

    3 1 2  ->  0 3 4
    """
    square = jnp.broadcast_to(x[..., None, :], (*x.shape, x.shape[-1]))
    return jnp.sum(jnp.tril(square, -1), axis=-1, dtype=jnp.int32)


def branch(
    tree: Tree, parent: jax.Array, mask: jax.Array, draft: jax.Array | None = None
) -> tuple[Tree, jax.Array]:
    """Adds one empty child per row; nothing is copied.

    A node must not grow once it has children that are no drafts: their positions start
    where it ended when they were made.

    Args:
        tree: the forest.
        parent: [B] int32, live node that each row branches from; NO_NODE makes a root.
        mask: [B] bool, true for rows that take part.
        draft: [B] bool, true for nodes whose tokens are stored in the pages of their
            nearest ancestor that is no draft, until `accept` or `prune`; none if None.

    Returns:
        The tree and [B] int32 the new nodes, N for rows that took no part. If too few
        nodes are free the tree is as it was but for its overflow bit, and all are N.
    """
    size = tree.num_nodes
    fits = jnp.sum(mask, dtype=jnp.int32) <= tree.num_free_nodes
    overflow = tree.overflow | jnp.where(fits, 0, OUT_OF_NODES)
    mask = mask & fits
    index = jnp.cumsum(mask, dtype=jnp.int32) - 1
    node = jnp.where(mask, tree.free_nodes[tree.num_free_nodes - 1 - index], size)

    is_root = parent < 0
    safe = jnp.clip(parent, 0, size - 1)
    before = jnp.where(is_root, -1, tree.first[safe])
    inserted = jnp.zeros(size + 1, jnp.int32)
    inserted = inserted.at[jnp.where(mask, before + 1, size + 1)].add(1, mode="drop")
    shift = jnp.cumsum(inserted, dtype=jnp.int32)
    first = jnp.minimum(tree.first + shift[tree.first], size)
    end = jnp.minimum(tree.end + shift[tree.end], size)
    own_shift = jnp.where(is_root, 0, shift[jnp.maximum(before, 0)])
    own_first = before + 1 + own_shift + earlier_equal(before, mask)

    start = jnp.where(is_root, 0, tree.start[safe] + tree.count[safe])
    storage = node
    if draft is not None:
        storage = jnp.where(draft & ~is_root, tree.storage[safe], node)

    def put(array, value):
        return array.at[node].set(value, mode="drop")

    return replace(
        tree,
        parent=put(tree.parent, jnp.where(is_root, NO_NODE, parent)),
        first=put(first, own_first),
        end=put(end, own_first + 1),
        count=put(tree.count, 0),
        start=put(tree.start, start),
        storage=put(tree.storage, storage),
        num_free_nodes=tree.num_free_nodes - jnp.sum(mask, dtype=jnp.int32),
        overflow=overflow,
    ), node


def prune(tree: Tree, doomed: jax.Array, keep: jax.Array | None = None) -> Tree:
    """Frees the subtrees of `doomed` nodes and every ancestor left without a leaf.

    Args:
        tree: the forest.
        doomed: [N] bool, true for nodes to drop with all below them.
        keep: [N] bool, true for nodes that stay although no leaf is left below them,
            unless they are in a doomed subtree; none if None.
    """
    dead = _below(tree, doomed & tree.live)
    leaf = tree.live & (tree.end == tree.first + 1)
    if keep is not None:
        leaf = leaf | (keep & tree.live)
    return _remove(tree, tree.live & ~_holds(tree, leaf & ~dead))


def accept(tree: Tree, tip: jax.Array) -> Tree:
    """Keeps one path of each draft tree: its tokens become their trunk's own.

    The trunk of a draft is the node that owns its pages. Drafts of the same trunk that
    are not on the path from the trunk to the tip are dropped with all below them; their
    slots are used again by the next tokens of the trunk. No KV moves.

    Args:
        tree: the forest.
        tip: [A] int32, last accepted node of each path; a node that is no draft accepts
            none of its drafts; NO_NODE entries are ignored. One tip per trunk.
    """
    size = tree.num_nodes
    tip = jnp.where(tip < 0, size, tip)
    trunk = tree.storage.at[tip].get(mode="fill", fill_value=size)
    # By trunk, the depth-first number of its tip: the drafts whose intervals hold it
    # are on the path.
    goal = jnp.full(size, -1, jnp.int32)
    goal = goal.at[trunk].set(tree.first.at[tip].get(mode="clip"), mode="drop")
    goal = goal.at[tree.storage].get(mode="fill", fill_value=-1)
    draft = (tree.storage != jnp.arange(size)) & (goal >= 0)
    on_path = draft & (tree.first <= goal) & (goal < tree.end)
    dead = _below(tree, draft & ~on_path)
    merged = on_path & ~dead

    gain = jnp.where(merged, tree.count, 0)
    count = tree.count.at[tree.storage].add(gain, mode="drop")
    parent = jnp.clip(tree.parent, 0, size - 1)
    adopted = (tree.parent >= 0) & merged[parent]
    tree = replace(
        tree,
        count=count,
        parent=jnp.where(adopted, tree.storage[parent], tree.parent),
    )
    return _remove(tree, dead | merged, heir=jnp.where(merged, tree.storage, size))


def _below(tree: Tree, mask: jax.Array) -> jax.Array:
    """[N] bool: nodes that are masked or have a masked ancestor."""
    size = tree.num_nodes
    edge = jnp.zeros(size + 1, jnp.int32)
    edge = edge.at[jnp.where(mask, tree.first, size + 1)].add(1, mode="drop")
    edge = edge.at[jnp.where(mask, tree.end, size + 1)].add(-1, mode="drop")
    return tree.live & (jnp.cumsum(edge, dtype=jnp.int32)[tree.first] > 0)


def _holds(tree: Tree, mask: jax.Array) -> jax.Array:
    """[N] bool: nodes that are masked or have a masked descendant."""
    size = tree.num_nodes
    marks = jnp.zeros(size, jnp.int32)
    marks = marks.at[jnp.where(mask, tree.first, size)].add(1, mode="drop")
    upto = exclusive_cumsum(marks)
    return tree.live & (upto[tree.end] > upto[tree.first])


def _remove(tree: Tree, gone: jax.Array, heir: jax.Array | None = None) -> Tree:
    """Frees nodes and the pages they leave empty; `heir` takes over their tokens.

    Args:
        gone: [N] bool, live nodes to free.
        heir: [N] int32, node that a freed node's tokens go to, N to drop them.
    """
    size = tree.num_nodes
    kept = tree.live & ~gone
    order = jnp.zeros(size, jnp.int32)
    order = order.at[jnp.where(kept, tree.first, size)].set(1, mode="drop")
    upto = exclusive_cumsum(order)
    own = jnp.arange(size, dtype=jnp.int32)
    moved = jnp.where(gone, size if heir is None else heir, own)
    moved = jnp.append(moved, jnp.int32(size))
    slot_node = moved[tree.slot_node]
    empty = jnp.all(slot_node == size, axis=1) & (tree.page_owner < size)
    free_nodes, num_free_nodes = _push(tree.free_nodes, tree.num_free_nodes, gone)
    free_pages, num_free_pages = _push(tree.free_pages, tree.num_free_pages, empty)
    return replace(
        tree,
        parent=jnp.where(gone, NO_NODE, tree.parent),
        first=jnp.where(kept, upto[tree.first], size),
        end=jnp.where(kept, upto[tree.end], size),
        count=jnp.where(gone, 0, tree.count),
        storage=jnp.where(gone, size, tree.storage),
        page_owner=jnp.where(empty, size, tree.page_owner),
        slot_node=slot_node,
        free_nodes=free_nodes,
        num_free_nodes=num_free_nodes,
        free_pages=free_pages,
        num_free_pages=num_free_pages,
    )


def _push(stack, height, freed):
    """Puts the indices of `freed` on a free list; returns it and its new height."""
    index = height + jnp.cumsum(freed, dtype=jnp.int32) - 1
    at = jnp.where(freed, index, stack.shape[0])
    items = jnp.arange(stack.shape[0], dtype=jnp.int32)
    return stack.at[at].set(items, mode="drop"), height + jnp.sum(
        freed, dtype=jnp.int32
    )
