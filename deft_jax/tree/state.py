"""The decoding tree: a forest of nodes whose tokens live in pages, all on the device.

Every array has a capacity as its shape: `N` nodes, `M` pages of `P` token slots. Nodes
are numbered in depth-first order by `first` and `end`: the subtree of `x` is the nodes
`y` with `first[x] <= first[y] < end[x]`. Branching and pruning shift these numbers with
prefix sums, so that no operation walks the tree and none moves a token's KV.

Two sentinels: `NO_NODE` (-1) is compared with (a root has no parent); the capacity, `N`
or `M`, marks a free slot or an idle row in arrays that are used as scatter indices,
where mode="drop" ignores it. Operations take either for an idle row, and any other
number that is no live node, too.
"""

import dataclasses
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from deft_jax.errors import DeftError
from deft_jax.tree.invariants import NO_NODE, find_faults

OUT_OF_NODES = 1
"""Bit of `Tree.overflow`: a branch did not find enough free nodes."""

OUT_OF_PAGES = 2
"""Bit of `Tree.overflow`: an append did not find enough free pages."""

OUT_OF_ORDER = 4
"""Bit of `Tree.overflow`: an append to a node that has tokens below it was refused."""


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
        trunk: [N] int32, the node itself, or for a draft the nearest ancestor that is
            none; N for free nodes.
        storage: [N] int32, node into whose pages this node's next tokens go: itself, or
            what its parent has; N for free nodes. It does not say where the tokens are
            that the node has: `slot_node` does.
        page_owner: [M] int32, node whose page it is: nodes with this `storage` fill its
            empty slots. N for free pages. A page may hold tokens of
            the owner and of any nodes below it, and is in use while it holds one.
        slot_node: [M, P] int32, node of the token in the slot, N for empty slots.
        slot_position: [M, P] int32, position of that token along its path.
        slot_token: [M, P] int32, token id.
        free_nodes: [N] int32, the first `num_free_nodes` are free.
        num_free_nodes: [] int32, free nodes.
        free_pages: [M] int32, the first `num_free_pages` are free.
        num_free_pages: [] int32, free pages.
        overflow: [] int32, bits OUT_OF_NODES, OUT_OF_PAGES and OUT_OF_ORDER of what was
            refused.
    """

    parent: jax.Array
    first: jax.Array
    end: jax.Array
    count: jax.Array
    start: jax.Array
    trunk: jax.Array
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
        """Make an empty forest.

        Args:
            num_nodes: `N`, the most nodes that can live at once.
            num_pages: `M`, the pages of the pool.
            page_size: `P`, the token slots of a page.

        Raises:
            DeftError: a capacity is no integer, or below 1.
        """
        num_nodes = _size("num_nodes", num_nodes)
        num_pages = _size("num_pages", num_pages)
        page_size = _size("page_size", page_size)

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
            trunk=nodes(num_nodes),
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
    def is_draft(self) -> jax.Array:
        """[N] bool, true for nodes to be accepted or dropped later."""
        return self.live & (self.trunk != np.arange(self.num_nodes))

    @property
    def page_fill(self) -> jax.Array:
        """[M] int32, tokens in each page."""
        return jnp.sum(self.slot_node < self.num_nodes, axis=1, dtype=jnp.int32)

    def check(self) -> None:
        """Verify on the host that the arrays describe a forest.

        For tests and for debugging: it copies the arrays from the device and walks
        them, so it has no place in a decode loop. A tree that only the operations of
        this package have changed, as their docstrings allow, never fails.

        Raises:
            DeftError: something does not hold; the message names the first node, page
                or slot that breaks it. Or the tree is traced, within `jax.jit`.
        """
        if any(isinstance(x, Tracer) for x in jax.tree.leaves(self)):
            raise DeftError("a traced tree has no values to check; check it after jit")
        for fault in find_faults(jax.device_get(self)):
            raise DeftError(f"broken tree: {fault}")


def _size(name: str, value: int) -> int:
    """Return a capacity as an integer, or say what is wrong with it."""
    try:
        size = operator.index(value)
    except TypeError:
        raise DeftError(f"{name} must be an integer, got {value!r:.60}") from None
    if size < 1:
        raise DeftError(f"{name} must be at least 1, got {size}")
    return size


def replace(tree: Tree, **changes) -> Tree:
    """Return the tree with some arrays changed."""
    return dataclasses.replace(tree, **changes)


def choose(condition: jax.Array, yes, no):
    """Return `jnp.where` over two pytrees of one structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
