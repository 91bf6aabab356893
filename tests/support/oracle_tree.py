"""A forest in plain Python: what the tree operations must do, told as simply as can be.

Nodes are kept in a dict, children in lists, and every operation walks. A token stays in
the page and slot it was put in; a page has no state of its own: it belongs to the node
whose tokens it holds, and one that holds none is free.
"""

import dataclasses
from collections import Counter
from collections.abc import Container, Iterable

PageSlot = tuple[int, int]
"""Page, and slot within the page."""


@dataclasses.dataclass
class Token:
    """One token of a node.

    Attributes:
        token: its id.
        position: along its path, 0 for the first token of a root.
        slot: where its KV is.
    """

    token: int
    position: int
    slot: PageSlot


@dataclasses.dataclass
class Node:
    """One node of a forest.

    Attributes:
        parent: None for a root.
        draft: true if its tokens are stored in the pages of its trunk.
        children: in the order they were made.
        tokens: in path order.
    """

    parent: int | None
    draft: bool = False
    children: list[int] = dataclasses.field(default_factory=list)
    tokens: list[Token] = dataclasses.field(default_factory=list)


class OracleTree:
    """A forest whose node numbers and slots of tokens the caller chooses.

    Attributes:
        nodes: the live nodes by number.
    """

    def __init__(self):
        self.nodes: dict[int, Node] = {}

    def branch(self, node: int, parent: int | None, draft: bool = False) -> None:
        """Add an empty node; a root is never a draft."""
        assert node not in self.nodes, f"node {node} is live"
        if parent is not None:
            self.nodes[parent].children.append(node)
        self.nodes[node] = Node(parent, draft and parent is not None)

    def append(self, token_of: Iterable[tuple[int, int, PageSlot]]) -> list[int]:
        """Add a token to each node; return the positions.

        Args:
            token_of: node, token and slot of each row.
        """
        rows = [(node, Token(token, -1, slot)) for node, token, slot in token_of]
        for node, token in rows:
            self.nodes[node].tokens.append(token)
        for node, token in rows:
            index = [each is token for each in self.nodes[node].tokens].index(True)
            token.position = self.start(node) + index
        return [token.position for _, token in rows]

    def may_append(self, nodes: Iterable[int]) -> bool:
        """Return false if there are tokens below a node that would grow."""
        below = (x for node in nodes for x in self.subtree(node)[1:])
        return not any(self.nodes[x].tokens for x in below)

    def start(self, node: int) -> int:
        """Return the position of the node's first token."""
        parent = self.nodes[node].parent
        return 0 if parent is None else len(self.path(parent))

    def prune(self, doomed: Iterable[int], keep: Container[int] = ()) -> None:
        """Drop subtrees, and the ancestors they leave without a leaf.

        Args:
            doomed: roots of the subtrees.
            keep: ancestors that stay, with those above them.
        """
        for node in doomed:
            while node in self.nodes:
                parent = self.nodes[node].parent
                self._drop(node)
                if parent is None or self.nodes[parent].children or parent in keep:
                    break
                node = parent

    def accept(self, tip: int) -> None:
        """Move the tokens of the drafts on the path to the tip into their trunk.

        The trunk's other drafts are dropped with all below them, and so are children
        of nodes above the tip that are no drafts: they do not begin at an end any more.

        A tip that an earlier call dropped is ignored.
        """
        if tip not in self.nodes:
            return
        trunk, path = self.trunk(tip), self.draft_path(tip)
        rejected = [
            x for x in self.drafts() if self.trunk(x) == trunk and x not in path
        ]
        for node in [trunk, *path][:-1]:
            children = self.nodes[node].children
            rejected += [child for child in children if not self.nodes[child].draft]
        for node in rejected:
            if node in self.nodes:
                self._drop(node)
        for node in path:
            merged = self.nodes[node]
            self.nodes[trunk].tokens += merged.tokens
            for child in set(merged.children) - set(path):
                self.nodes[child].parent = trunk
                self.nodes[trunk].children.append(child)
        if path:
            self.nodes[trunk].children.remove(path[0])
        for node in path:
            del self.nodes[node]

    def _drop(self, node: int) -> None:
        """Remove a node and all below it."""
        parent = self.nodes[node].parent
        if parent is not None:
            self.nodes[parent].children.remove(node)
        for gone in self.subtree(node):
            del self.nodes[gone]

    def subtree(self, node: int) -> list[int]:
        """Return the node and all below it, each before its children."""
        below = [self.subtree(child) for child in self.nodes[node].children]
        return [node, *(each for nodes in below for each in nodes)]

    def trunk(self, node: int) -> int:
        """Return the node itself, or for a draft its nearest ancestor that is none."""
        while self.nodes[node].draft:
            node = self._parent(node)
        return node

    def draft_path(self, tip: int) -> list[int]:
        """Return the drafts from below the trunk down to the tip."""
        path = []
        while self.nodes[tip].draft:
            path.insert(0, tip)
            tip = self._parent(tip)
        return path

    def drafts(self) -> list[int]:
        """Return all nodes that are drafts."""
        return [x for x, node in self.nodes.items() if node.draft]

    def _parent(self, node: int) -> int:
        parent = self.nodes[node].parent
        assert parent is not None, f"node {node} is a root"
        return parent

    def path(self, node: int) -> list[Token]:
        """Return the tokens from the root to the node's last."""
        parent = self.nodes[node].parent
        above = [] if parent is None else self.path(parent)
        return above + self.nodes[node].tokens

    def tokens(self) -> list[tuple[int, Token]]:
        """Return every token with its node."""
        return [(x, token) for x, node in self.nodes.items() for token in node.tokens]

    def page_owners(self) -> dict[int, int]:
        """Return the node that owns each page in use."""
        owners: dict[int, int] = {}
        for node, token in self.tokens():
            page, trunk = token.slot[0], self.trunk(node)
            assert owners.setdefault(page, trunk) == trunk, (
                f"page {page} has two owners"
            )
        return owners

    def pages_needed(self, rows: Iterable[int], page_size: int) -> int:
        """Return the free pages that appending one token to each row takes.

        Args:
            rows: nodes; one that gets several tokens is there as often.
            page_size: tokens per page.
        """
        pages = Counter(self.page_owners().values())
        used = Counter(self.trunk(node) for node, _ in self.tokens())
        needed = 0
        for trunk, new in Counter(map(self.trunk, rows)).items():
            holes = pages[trunk] * page_size - used[trunk]
            needed += -(-max(new - holes, 0) // page_size)
        return needed
