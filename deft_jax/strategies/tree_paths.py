"""Paths of a forest on the host, as the rows of a plan find them."""

import numpy as np

from deft_jax.strategies.protocol import Plan, View
from deft_jax.tree.state import NO_NODE


class TreePaths:
    """What each row of a plan continues, after what the plan accepts.

    A *code* below N is a node of the tree; N + j stands for the node that row j adds.

    Attributes:
        num_nodes: `N`.
    """

    def __init__(self, view: View, plan: Plan):
        """Look at the forest; no row is placed yet.

        Args:
            view: what the planner saw; NumPy arrays.
            plan: what it asks for; NumPy arrays.
        """
        self._tree, self._plan, self._roots = view.tree, plan, view.roots.tolist()
        self.num_nodes = view.tree.num_nodes
        self._live, self._parent = view.tree.live.copy(), view.tree.parent.copy()
        self._end = view.tree.start + view.tree.count
        self._is_draft = self._live & (view.tree.trunk != np.arange(self.num_nodes))
        for tip in plan.accept[(plan.accept >= 0) & (plan.accept < self.num_nodes)]:
            if self._live[tip]:
                self._accept(int(tip))
        self._node: dict[int, int] = {}
        self._length: dict[int, int] = {}

    def _accept(self, tip: int) -> None:
        """Let the trunk of a tip take over its tokens; drop what hangs on others."""
        trunk = int(self._tree.trunk[tip])
        self._end[trunk] = self._end[tip]
        dead = self._is_draft & (self._tree.trunk == trunk)
        self._parent[(self._parent == tip) & ~dead] = trunk
        dead[self.overrun(tip)] = True
        for node in np.argsort(self._tree.first, kind="stable"):
            if (above := self._parent[node]) != NO_NODE:
                dead[node] |= dead[above]
        self._live &= ~dead

    def overrun(self, tip: int) -> list[int]:
        """Return the children of nodes above a tip that are no drafts of its trunk."""
        tree, path = self._tree, [tip]
        while path[-1] != tree.trunk[tip]:
            path.append(int(tree.parent[path[-1]]))
        children = np.isin(tree.parent, path[1:]) & tree.live
        return np.flatnonzero(children & (tree.trunk != tree.trunk[tip])).tolist()

    def name(self, code: int) -> str:
        """Return what a code stands for, in words: "node 3", "row 1's new node"."""
        return (
            f"node {code}"
            if code < self.num_nodes
            else f"row {code - self.num_nodes}'s new node"
        )

    def is_live(self, node: int) -> bool:
        """Return whether a node is there once the plan has accepted drafts."""
        return bool(self._live[node])

    def is_placed(self, row: int) -> bool:
        """Return whether a row has a place; rows are placed in order."""
        return row in self._node

    def pruned_above(self, node: int) -> int | None:
        """Return the node that the plan prunes on the path down to `node`, if any."""
        while node != NO_NODE:
            if self._plan.prune[node]:
                return node
            node = int(self._parent[node])
        return None

    def parent_of(self, row: int) -> int:
        """Return the code of the node that a row continues."""
        source = int(self._plan.source[row])
        return (
            source if source < self.num_nodes else self._node[source - self.num_nodes]
        )

    def child_of(self, code: int) -> int | None:
        """Return a child of a node that is no draft, if it has one."""
        own = self._live & ~self._is_draft & (self._parent == code)
        return int(own.argmax()) if code < self.num_nodes and own.any() else None

    def request_of(self, row: int) -> int:
        """Return the request slot whose root is nearest above a row, -1 for none."""
        node = int(self._plan.source[row])
        while node >= self.num_nodes:
            node = int(self._plan.source[node - self.num_nodes])
        while node not in self._roots and self._tree.parent[node] != NO_NODE:
            node = int(self._tree.parent[node])
        return self._roots.index(node) if node in self._roots else -1

    def generated(self, row: int) -> int:
        """Return the tokens on a row's path with its own, the prompt left out."""
        source = int(self._plan.source[row])
        if source >= self.num_nodes:
            return self._length[source - self.num_nodes] + 1
        root = self._roots[self.request_of(row)]
        prompt = self._tree.start[root] + self._tree.count[root]
        return int(self._end[source] - prompt) + 1

    def place(self, row: int) -> None:
        """Give a row, whose plan is right, its node."""
        own = self.num_nodes + row
        self._node[row] = own if self._plan.branch[row] else self.parent_of(row)
        self._length[row] = self.generated(row)
