"""A forest in plain Python: what the tree operations must do, told as simply as can be.

Nodes are kept in a dict, children in lists, and every operation walks. A token stays in
the page and slot it was put in; a page has no state of its own: it belongs to the node
whose tokens it holds, and one that holds none is free.
"""

import dataclasses
from collections import Counter
from collections.abc import Container, Iterable

Place = tuple[int, int]
"""Page, and slot within the page."""


@dataclasses.dataclass
class Token:
    """One token of a node.

    Attributes:
        token: its id.
        position: along its path, 0 for the first token of a root.
        place: where its KV is.
    """

    token: int
    position: int
    place: Place


@dataclasses.dataclass
class Node:
    """One node of a forest.

    Attributes:
        parent: None for a root.
        start: position of its first token.
        draft: true if its tokens are stored in the pages of its trunk.
        children: in the order they were made.
        tokens: in path order.
    """

    parent: int | None
    start: int
    draft: bool = False
    children: list[int] = dataclasses.field(default_factory=list)
    tokens: list[Token] = dataclasses.field(default_factory=list)

    @property
    def stop(self) -> int:
        """Position of the token that follows the node."""
        return self.start + len(self.tokens)


class HostTree:
    """A forest whose node numbers and places of tokens the caller chooses.

    Attributes:
        nodes: the live nodes by number.
    """

    def __init__(self):
        self.nodes: dict[int, Node] = {}

    def branch(self, node: int, parent: int | None, draft: bool = False) -> None:
        """Add an empty node; a root is never a draft."""
        assert node not in self.nodes, f"node {node} is live"
        start = 0
        if parent is not None:
            start = self.nodes[parent].stop
            self.nodes[parent].children.append(node)
        self.nodes[node] = Node(parent, start, draft and parent is not None)

    def append(self, node: int, token: int, place: Place) -> int:
        """Add a token to a node; return its position."""
        position = self.nodes[node].stop
        self.nodes[node].tokens.append(Token(token, position, place))
        return position

    def prune(self, doomed: Iterable[int], keep: Container[int] = ()) -> None:
        """Drop subtrees, and the ancestors they leave without a leaf up to one of
        `keep`."""
        for node in doomed:
            while node in self.nodes:
                parent = self.nodes[node].parent
                self._drop(node)
                if parent is None or self.nodes[parent].children or parent in keep:
                    break
                node = parent

    def accept(self, tip: int) -> None:
        """Move the tokens of the drafts on the path to the tip into their trunk; drops
        the trunk's other drafts with all below them.

        A tip that an earlier call dropped is ignored.
        """
        if tip not in self.nodes:
            return
        trunk, path = self.trunk(tip), self.draft_path(tip)
        rejected = [
            x for x in self.drafts() if self.trunk(x) == trunk and x not in path
        ]
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

    def may_accept(self, tip: int) -> bool:
        """False if a node above the tip would outgrow children that stay."""
        above = [self.trunk(tip), *self.draft_path(tip)][:-1]
        children = (child for node in above for child in self.nodes[node].children)
        return all(self.nodes[child].draft for child in children)

    def _drop(self, node: int) -> None:
        """Remove a node and all below it."""
        parent = self.nodes[node].parent
        if parent is not None:
            self.nodes[parent].children.remove(node)
        for gone in self.subtree(node):
            del self.nodes[gone]

    def subtree(self, node: int) -> list[int]:
        """The node and all below it, each before its children."""
        below = [self.subtree(child) for child in self.nodes[node].children]
        return [node, *(each for nodes in below for each in nodes)]

    def trunk(self, node: int) -> int:
        """The node itself, or for a draft its nearest ancestor that is none."""
        while self.nodes[node].draft:
            node = self._parent(node)
        return node

    def draft_path(self, tip: int) -> list[int]:
        """The drafts from below the trunk down to the tip."""
        path = []
        while self.nodes[tip].draft:
            path.insert(0, tip)
            tip = self._parent(tip)
        return path

    def drafts(self) -> list[int]:
        """All nodes that are drafts."""
        return [x for x, node in self.nodes.items() if node.draft]

    def _parent(self, node: int) -> int:
        parent = self.nodes[node].parent
        assert parent is not None, f"node {node} is a root"
        return parent

    def path(self, node: int) -> list[Token]:
        """Tokens from the root to the node's last."""
        parent = self.nodes[node].parent
        above = [] if parent is None else self.path(parent)
        return above + self.nodes[node].tokens

    def tokens(self) -> list[tuple[int, Token]]:
        """Every token with its node."""
        return [(x, token) for x, node in self.nodes.items() for token in node.tokens]

    def page_owners(self) -> dict[int, int]:
        """The node that owns each page in use."""
        owners: dict[int, int] = {}
        for node, token in self.tokens():
            page, trunk = token.place[0], self.trunk(node)
            assert owners.setdefault(page, trunk) == trunk, (
                f"page {page} has two owners"
            )
        return owners

    def pages_needed(self, rows: Iterable[int], page_size: int) -> int:
        """Free pages that appending one token to each of `rows` takes.

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
